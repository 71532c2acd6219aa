"""The registered models and their sizes."""

import dataclasses
import fnmatch
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.flops import traced_flops
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A registered model. The sizes are computed on first access.

    Attributes:
        name: name of the model, as `create_model` accepts it.
        architecture: name of its architecture, as "vit".
        image_size: height and width of its images, px; (0, 0) if it reads none.
    """

    name: str
    architecture: str
    image_size: tuple[int, int]

    @functools.cached_property
    def parameters(self) -> int:
        """Number of parameters, including running statistics of batch norms."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self._definition.shapes()))

    @functools.cached_property
    def gflops(self) -> float:
        """Billions of operations of the forward pass of one image.

        With it go one text if there is a text tower, and one point for SAM. A
        multiply-add counts as two operations.
        """
        definition = self._definition
        images = jax.ShapeDtypeStruct((1, *self.image_size, 3), jnp.float32)

        def forward(params: Params, images: jax.Array) -> Any:
            model = definition.bind(params)
            encode = getattr(model, "encode_image", model)  # LLaVA and Qwen-VL pool nothing
            if hasattr(model, "predict_masks"):
                return model(images, jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1), jnp.int32))
            if not hasattr(model, "text"):
                return encode(images)
            tokens = jnp.zeros((1, model.text.config.context_length), jnp.int32)
            if hasattr(model, "embed_caption"):
                return model(images, tokens)
            if hasattr(model, "detect"):
                return model(images, tokens[None])
            if not hasattr(model, "image"):
                return model.encode_text(tokens)
            return encode(images), model.encode_text(tokens)

        return traced_flops(jax.make_jaxpr(forward)(definition.shapes(), images)) / 1e9

    @functools.cached_property
    def _definition(self) -> ModelDef:
        return ModelDef(registry.model_spec(self.name).architecture)


def list_models(pattern: str = "*") -> list[ModelInfo]:
    """Returns the registered models whose names match a pattern, sorted by name.

    Args:
        pattern: shell-style pattern with `*` and `?`, as "clip_*".

    Example:
        >>> [model.name for model in list_models("sam_*")]
        ['sam_vit_b', 'sam_vit_h', 'sam_vit_l']
        >>> list_models("vit_b16")[0].parameters
        86567656
    """
    names = fnmatch.filter(registry.model_names(), pattern)
    specs = {name: registry.model_spec(name) for name in names}
    return [
        ModelInfo(name, registry.architecture_name(spec.architecture), spec.inputs.size)
        for name, spec in specs.items()
    ]
