"""Contexts of small models, to build objectives without a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.dino.model import DINOConfig
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.objectives import OBJECTIVES, Context, Objective
from vit_jax.objectives.microbatches import Microbatches
from vit_jax.parallel.mesh import batch_sharding, make_mesh, to_devices
from vit_jax.parallel.sharding import tracing_for

# Height, width, patch size: images are not square.
SIZE, PATCH = (8, 12), 2
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL = {"patch_size": PATCH, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}


def small_vit(**changes: Any) -> ViTConfig:
    """ViT for images of 8 x 12 px."""
    return ViTConfig(image_size=SIZE, **{**SMALL, **changes})


def small_dino(**changes: Any) -> DINOConfig:
    """ViT for images of 8 x 12 px with heads of 12 and 18 prototypes."""
    heads = {"head_dim": 8, "bottleneck": 6, "prototypes": 12, "patch_bottleneck": 4}
    defaults = {"image": small_vit(), **heads, "patch_prototypes": 18}
    return DINOConfig(**{**defaults, **changes})


def context(architecture: Any, *, microbatches: tuple[int, int] = (1, 1), **fields: Any) -> Context:
    """Context of an architecture.

    Args:
        architecture: dataclass of an architecture.
        microbatches: number of steps and shards.
        **fields: further fields of the context.
    """
    inputs = ImageInputs(mean=MEAN, std=STD)
    return Context(
        spec=ModelSpec(architecture=architecture, inputs=inputs),
        model=ModelDef(architecture),
        microbatches=Microbatches(*microbatches),
        **fields,
    )


def build(name: str, context: Context, **keys: Any) -> Objective:
    """An objective by name."""
    component, config = OBJECTIVES.select({"name": name, **keys}, "config.objective")
    return component(config, context)


def random_images(count: int = 6, seed: int = 0) -> tuple[jax.Array, np.ndarray]:
    """Packed uint8 images, and in float64 what the model sees of them, (count, 8, 12, 3)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3)).astype(np.uint8)
    seen = (pixels.astype(np.float64) / 255 - np.asarray(MEAN)) / np.asarray(STD)
    return jnp.asarray(pixels.reshape(count, -1)), seen


def step_on_devices(objective: Objective, params: Any, batch: Any, count: int) -> Any:
    """Loss, metrics and gradients of a batch on a mesh of `count` devices."""
    model, mesh = objective.context.model, make_mesh(devices=jax.devices()[:count])

    @jax.jit
    def step(params, batch):
        with tracing_for(model, mesh):
            return jax.value_and_grad(
                lambda p: objective(model.bind(p), batch, jax.random.key(1)), has_aux=True
            )(params)

    return step(params, to_devices(batch, batch_sharding(mesh)))
