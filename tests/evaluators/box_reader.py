"""A detector that reads boxes off the pixels, and what an embedder of it needs.

Each row of pixels is one query: x, y, width and height in percent of the input, and a last pixel
(class, 0, score).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.data.tokenizers import Tokenizer
from vit_jax.evaluators.embedding import Embedder
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.parallel.mesh import make_mesh

SIZE, QUERIES = (8, 5), 8
NAMES = ["ant", "bee", "cat", "dog", "eel"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """A detector that reads boxes and scores off the pixels."""

    image_size: tuple[int, int] = SIZE
    text: str = "names"

    def make(self, **execution: Any) -> "Reader":
        return Reader()


class Reader(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def layers_above(self):
        return {}

    def encode_text(self, tokens, *, normalize=False, rng=None):
        return jax.nn.one_hot(tokens[:, 0] - 1, len(NAMES))

    def detect(self, images, queries, query_mask=None, *, rng=None):
        percent = (images * 0.5 + 0.5) * 255
        label = jax.nn.one_hot(jnp.rint(percent[:, :, 4, 0]).astype(jnp.int32), len(NAMES))
        of_class = jnp.sum(label[:, :, None] * queries[:, None], axis=-1)
        logits = self.scale[...] * of_class * percent[:, :, 4, 2, None] / 25 - 2
        return {
            "boxes": percent[:, :, :4, 0] / 100,
            "logits": jnp.where(query_mask[:, None], logits, -1e30),
        }


class Words(Tokenizer):
    """A word is its place in NAMES."""

    def __init__(self):
        pass

    def __call__(self, texts):
        return np.array([[NAMES.index(text.split()[-1]) + 1, 9] for text in texts], np.int32)


class WideInputs(ImageInputs):
    """Shows an area of twice the image, as inputs with padding do."""

    def extent(self, height, width):
        return 2 * height, 2 * width


def corners(percent):
    """Boxes cxcywh in percent of the input -> xyxy px."""
    center, sides = np.split(percent / 100 * np.array([2 * SIZE[1], 2 * SIZE[0]] * 2), 2, axis=1)
    return np.concatenate([center - sides / 2, center + sides / 2], axis=1).astype(np.float32)


def make_reader(sources, *, devices=8, config=None, inputs=None):
    """Embedder of a detector, with sources by name."""
    embedder = Embedder(
        ModelDef(config or ReaderConfig()),
        inputs=inputs or WideInputs(size=SIZE, resize="squash"),
        mesh=make_mesh(devices=jax.devices()[:devices]),
        tokenizer=Words(),
        batch_size=4,
    )
    embedder._sources = {(name, None): source for name, source in sources.items()}
    return embedder


def encode(percent, labels, scores):
    """Image of boxes cxcywh in percent of the input, classes, and scores in percent."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, :4, 0], pixels[:, 4, 0], pixels[:, 4, 2] = percent, labels, scores
    return pixels
