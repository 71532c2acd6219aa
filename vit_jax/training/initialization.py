"""Initial parameters from weights or from an earlier run (`config.init`), for fine-tuning.

Two models of one architecture share all parameter paths, and so do a dual encoder and the detector
that extends it. Models of different architectures share the image tower: that of a masked
autoencoder or a dual encoder initialises a classifier, a classifier initialises the tower of a dual
encoder. A parameter that the weights lack, or have in another shape, keeps its fresh value only if
`config.init.fresh` names it.

An architecture whose parameters depend on the resolution has a method `adapt(path, value, source)`
that makes a parameter from that of another configuration, see `ViTConfig.adapt`.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.pretrained.stored import StoredModel, open_stored_model
from vit_jax.training.freezing import match_paths
from vit_jax.weights.checks import describe

logger = logging.getLogger(__name__)

# Learned vectors of every text, and the table of tokens from which words initialise them.
_PROMPT, _TOKENS = "text/prompt", "text/token_embed/embedding"


@dataclasses.dataclass(frozen=True)
class _Towers:
    """Image towers of the stored and the new model.

    Attributes:
        stored: architecture of the stored model.
        new: architecture of the new model.
    """

    stored: Any
    new: Any

    @property
    def prefixes(self) -> tuple[str, str]:
        """Prefixes of the towers' parameter paths, stored and new."""
        stored, new = ("image/" if hasattr(a, "image") else "" for a in (self.stored, self.new))
        return stored, new

    def new_path(self, path: str) -> str | None:
        """Path in the new model of a stored parameter; None if the two do not share it."""
        if isinstance(self.new, type(self.stored)):
            return path
        stored, new = self.prefixes
        return new + path.removeprefix(stored) if path.startswith(stored) else None

    def adapt(self, path: str, value: jax.Array | None) -> jax.Array | None:
        """Value of a parameter for the new model.

        Args:
            path: path in the new model.
            value: stored value; None if it is not stored.
        """
        stored, new = (getattr(a, "image", a) for a in (self.stored, self.new))
        prefix = self.prefixes[1]
        if path.startswith("text/") and hasattr(self.stored, "text"):
            stored, new, prefix = self.stored.text, self.new.text, "text/"
        if stored == new or not hasattr(new, "adapt") or not path.startswith(prefix):
            return value
        adapted = new.adapt(path.removeprefix(prefix), value, stored)
        return value if adapted is None else adapted

    def adapted_shape(self, path: str, shape: jax.ShapeDtypeStruct | None) -> Any:
        """`ShapeDtypeStruct` of `adapt`."""
        if shape is None:
            return jax.eval_shape(lambda: self.adapt(path, None))
        return jax.eval_shape(lambda value: self.adapt(path, value), shape)


@dataclasses.dataclass(frozen=True)
class Initialization:
    """Stored parameters and their places in a new model.

    Attributes:
        stored: model of the stored parameters.
        paths: path in the new model -> path in the stored model; None for parameters that are
            computed from the stored configuration.
        towers: image towers of both models.
        prompt: token ids whose embeddings are the learned vectors of texts, or of each class, int32
            (M,); None where they are fresh or stored.
    """

    stored: StoredModel
    paths: dict[str, str | None]
    towers: _Towers
    prompt: np.ndarray | None = None

    @property
    def abstract(self) -> Params:
        """`ShapeDtypeStruct`s of the stored parameters."""
        return self.stored.model.shapes()

    def load(self, mesh: Mesh) -> Params:
        """Reads the stored parameters, sharded over the mesh."""
        return self.stored.load(parameter_shardings(self.stored.model, mesh))

    def fill(self, params: Params, weights: Params) -> Params:
        """Replaces fresh parameters by stored ones. Pure: jit it.

        Args:
            params: fresh parameters of the new model.
            weights: stored parameters, as `load` returns them.
        """
        leaves, source = flatten_dict(params, sep="/"), flatten_dict(weights, sep="/")
        for path, key in self.paths.items():
            value: Any = self.towers.adapt(path, None if key is None else source[key])
            leaves[path] = value.astype(leaves[path].dtype)
        if self.prompt is not None:
            words = leaves[_TOKENS][self.prompt]
            leaves[_PROMPT] = jnp.broadcast_to(words, leaves[_PROMPT].shape)
        return unflatten_dict(leaves, sep="/")


def build_initialization(
    init: ConfigDict,
    spec: ModelSpec,
    model: ModelDef,
    tokenizer: Callable[[], Tokenizer | None] = lambda: None,
) -> Initialization | None:
    """Opens the weights of `config.init`, without reading their tensors.

    Args:
        init: block of the config.
        spec: architecture and image preprocessing of the new model, which is also that of weights
            that do not name theirs.
        model: the new model.
        tokenizer: opens the tokenizer of the model, for `init.prompt`.

    Returns:
        The initialization, or None for fresh parameters.

    Raises:
        UserError: the weights do not fit the model, and `config.init.fresh` does not name the
            parameters that differ; or `config.init.prompt` does not fit the model.
    """
    if not init.weights:
        if init.fresh or init.model or init.prompt:
            raise UserError("config.init.weights is not set, but other keys of config.init are")
        return None
    stored = open_stored_model(init.weights, init.model, spec, {})
    stored.check()
    towers = _Towers(stored.spec.architecture, model.architecture)
    expected = flatten_dict(model.shapes(), sep="/")
    sources = _sources(stored.model, expected, towers)
    fresh: set[str] = set()
    for pattern in init.fresh:
        fresh |= match_paths(pattern, [*expected, *sources], "config.init.fresh")
    prompt = None
    if init.prompt:
        prompt = _prompt_tokens(init.prompt, expected, tokenizer())
        fresh.add(_PROMPT)
    _check_shapes(init.weights, expected, sources, fresh, stored.model, towers)
    paths = {path: key for path, key in sources.items() if path in expected and path not in fresh}
    logger.info(
        "Initialised %d of %d parameters from %s; fresh: %s.",
        len(paths),
        len(expected),
        init.weights,
        ", ".join(sorted(fresh & expected.keys())) or "none",
    )
    return Initialization(stored, paths, towers, prompt)


def _prompt_tokens(words: str, expected: Params, tokenizer: Tokenizer | None) -> np.ndarray:
    """Token ids of the words that initialise the learned vectors of texts."""
    if _PROMPT not in expected or tokenizer is None:
        raise UserError(
            f"config.init.prompt={words!r} needs a text tower with learned vectors: set "
            "config.model.text.prompt_length"
        )
    tokenizer = tokenizer.with_classes(())
    marks, count = tokenizer.layout.marks, expected[_PROMPT].shape[-2]
    found = tokenizer.lengths([words])[0] - marks
    if found != count:
        raise UserError(
            f"config.init.prompt={words!r} has {found} tokens, config.model.text.prompt_length is "
            f"{count}: expected the same number"
        )
    if found > tokenizer.context_length - marks:
        raise UserError(
            f"config.init.prompt={words!r} has {found} tokens, expected at most "
            f"{tokenizer.context_length - marks}"
        )
    return tokenizer([words])[0, marks - 1 : marks - 1 + count]


def _sources(stored: ModelDef, expected: Params, towers: _Towers) -> dict[str, str | None]:
    """Path in the new model -> path in the stored model, for all parameters that the two share.

    A path that is not stored, but that the new architecture computes from the stored configuration,
    has None.
    """
    sources: dict[str, str | None] = {}
    for key in flatten_dict(stored.shapes(), sep="/"):
        path = towers.new_path(key)
        if path is not None:
            sources[path] = key
    for path in expected:
        if path not in sources and towers.adapted_shape(path, None) is not None:
            sources[path] = None
    return sources


def _check_shapes(
    weights: str,
    expected: Params,
    sources: dict[str, str | None],
    fresh: set[str],
    stored: ModelDef,
    towers: _Towers,
) -> None:
    """Raises an error that lists all parameters that do not fit and are not fresh."""
    shapes = flatten_dict(stored.shapes(), sep="/")
    missing, unexpected, misshapen = {}, {}, {}
    for path in (expected.keys() | sources.keys()) - fresh:
        shape = shapes.get(sources.get(path) or "")
        if path not in sources:
            missing[path] = tuple(expected[path].shape)
        elif path not in expected:
            assert shape is not None
            unexpected[path] = tuple(shape.shape)
        else:
            adapted = towers.adapted_shape(path, shape)
            if adapted.shape != expected[path].shape:
                found = (shape or adapted).shape
                misshapen[path] = f"expected {tuple(expected[path].shape)}, found {tuple(found)}"
    if missing or unexpected or misshapen:
        raise UserError(
            describe(
                f"config.init.weights={weights}",
                dict(sorted(missing.items())),
                dict(sorted(unexpected.items())),
                dict(sorted(misshapen.items())),
            )
            + "\nconfig.init.fresh names parameters that keep their fresh values, as "
            "('head/.*',); config.init.model names the model that the weights belong to"
        )
