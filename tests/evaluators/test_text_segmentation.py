"""Masks by words, with a model that reads them off the pixels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_prompted import INPUTS, SIZE, RegionsConfig, Scenes

from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators import mask_metrics as mm
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.suite import Suite
from vit_jax.models.definition import ModelDef
from vit_jax.parallel.mesh import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpokenConfig:
    """The probability of "one" is 1/4 for levels below 4, 3/4 below 8; of "two" it is 1 above."""

    image_size: tuple[int, int] = SIZE
    text: str = "names"

    def make(self, **execution: Any) -> "Spoken":
        return Spoken()


class Spoken(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def layers_above(self):
        return {}

    def masks_of(self, images, conditions):
        raise NotImplementedError

    def __call__(self, images, tokens, *, rng=None):
        levels = jnp.rint((images * 0.5 + 0.5) * 255)[:, None, ..., 0]
        one = jnp.where(levels < 4, -jnp.log(3), jnp.where(levels < 8, jnp.log(3), -9))
        two = jnp.where(levels < 8, -9, 9)
        kind = tokens[..., :1, None]
        return {"masks": jnp.where(kind == 1, one, two) * self.scale[...]}


class Words(Tokenizer):
    def __init__(self):
        pass

    def __call__(self, texts):
        return np.array([[["a one", "a two"].index(text) + 1, 9] for text in texts], np.int32)


class Named(Scenes):
    """Some pixels are not annotated, and an object has no mask."""

    def __init__(self):
        super().__init__(7)
        self.examples[5]["ignored"] = np.arange(SIZE[0])[:, None] < np.full(SIZE[1], 5)
        self.examples[6]["segmentation"][1] = None
        self.class_names = ["one", "two"]


def evaluate(devices=8, scale=1.0, config=None, **keys):
    embedder = Embedder(
        ModelDef(config or SpokenConfig()), inputs=INPUTS, tokenizer=Words(),
        mesh=make_mesh(devices=jax.devices()[:devices]), batch_size=4,
    )  # fmt: skip
    embedder._sources = {("scenes", None): Named()}
    keys = {"data": "scenes", "template": "a {}", **keys}
    suite = Suite({"text_segmentation": {"x": keys}}, embedder)
    found = suite.run({"scale": np.float32(scale)})
    stored = suite.evaluators["text_segmentation/x"].predicted(1000)
    ious = [float(caption.rpartition(" ")[2]) for caption in stored["caption"][:, 0]]
    assert len(ious) == len(stored["shot"]) <= 16
    assert np.mean(ious) == pytest.approx(found["text_segmentation/x/mIoU"], abs=0.006)
    return {name.removeprefix("text_segmentation/x/"): value for name, value in found.items()}


def by_hand(low):
    """Levels of "one" from `low` to 8."""
    source, pairs, edges, by_class = Named(), [], [], {"one": [], "two": []}
    for example, levels in zip(source.examples, source.levels, strict=True):
        valid = ~example.get("ignored", np.zeros(SIZE, bool))
        for name in dict.fromkeys(example["names"]):
            masks = [m for n, m in zip(example["names"], example["segmentation"], strict=True)
                     if n == name]  # fmt: skip
            if any(mask is None for mask in masks):
                continue
            target = np.any(masks, axis=0) & valid
            found = ((levels >= low) & (levels < 8) if name == "one" else levels >= 8) & valid
            pairs.append(mm.overlap(found, target))
            by_class[name].append(pairs[-1])
            edges.append(mm.boundary_f(found, target))
    iou = np.array([a / b for a, b in pairs])
    return {
        "mIoU": iou.mean(),
        "oIoU": np.sum(pairs, axis=0)[0] / np.sum(pairs, axis=0)[1],
        "P@50": np.mean(iou >= 0.5),
        "boundary_f": np.mean(edges),
        "class_mIoU": np.mean([a / b for a, b in (np.sum(x, axis=0) for x in by_class.values())]),
    }


@pytest.mark.parametrize(("devices", "threshold", "low"), [(8, 0.5, 4), (1, 0.2, 0)])
def test_overlap_by_words(devices, threshold, low):
    expected = by_hand(low)
    assert 0 < expected["mIoU"] != expected["oIoU"]
    found = evaluate(devices, threshold=threshold, max_prompts=1 if devices == 8 else 8)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"config": RegionsConfig()}, "predicts them, as clipseg_rd64_refined; found RegionsConf"),
        ({"threshold": 1.0}, "threshold=1.0: expected a number between 0 and 1"),
        ({"max_prompts": 0}, "max_prompts=0: expected 1 or more"),
        ({"scale": np.nan}, "masks of image 1 are NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        evaluate(**keys)
