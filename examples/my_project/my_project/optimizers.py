"""Optimizers of the project."""

import optax


def sign_momentum(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformation:
    """Signum (Bernstein et al. 2018): steps in the direction of the sign of the momentum.

    Args:
        learning_rate: learning rate or its schedule, set by vit_jax.
        decay: decay of the momentum, a key of `config.optim`.
    """
    return optax.chain(
        optax.ema(decay, debias=False),
        optax.scale_by_sign(),
        optax.scale_by_learning_rate(learning_rate),
    )
