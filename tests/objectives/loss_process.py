"""One process of several: computes every form of the loss over all of them.

python loss_process.py OUTPUT.npz, with the environment that `vit_jax.parallel.processes` reads.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from test_contrastive_loss import BIAS, make_pairs

from vit_jax.objectives.contrastive import FORMS, LOSSES, contrastive_loss
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh


def main(output: str) -> None:
    """Writes losses and gradients, whole, from process 0."""
    processes.start(timeout=120)
    mesh = make_mesh()
    split = batch_sharding(mesh)
    image, text = (
        jax.make_array_from_callback(x.shape, split, lambda index, x=x: x[index])
        for x in make_pairs()
    )
    found = {}
    for loss in LOSSES:
        for form in FORMS:

            def value(image, text, scale, bias, loss=loss, form=form):
                return contrastive_loss(
                    image,
                    text,
                    logit_scale=scale,
                    logit_bias=bias,
                    loss=loss,
                    form=form,
                    tile_size=5,
                    mesh=mesh,
                    batch_axes=BATCH_AXES,
                )

            step = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True))
            (result, _), gradients = step(image, text, jnp.float32(10.0), jnp.float32(BIAS[loss]))
            for name, x in zip(
                ("loss", "image", "text", "scale", "bias"), (result, *gradients), strict=True
            ):
                found[f"{loss} {form} {name}"] = multihost_utils.process_allgather(x, tiled=True)
    if jax.process_index() == 0:
        np.savez(output, **found)


if __name__ == "__main__":
    main(sys.argv[1])
