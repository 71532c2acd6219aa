"""Linear classifier heads."""

from flax import nnx

from vit_jax.models.layers.parameters import Initializer, metadata


def classifier_head(
    width: int, num_classes: int, *, kernel_init: Initializer, rngs: nnx.Rngs
) -> nnx.Linear:
    """Builds a float32 linear layer from pooled features to logits.

    Args:
        width: number of features D.
        num_classes: number of logits.
        kernel_init: initializer of the kernel (D, num_classes).
        rngs: source of the parameters' keys.
    """
    return nnx.Linear(
        width,
        num_classes,
        kernel_init=kernel_init,
        kernel_metadata=metadata("embed", "classes"),
        bias_metadata=metadata("classes", decay=False),
        rngs=rngs,
    )
