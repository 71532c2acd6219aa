"""Masks by clicks and boxes, with a model that reads regions off the pixels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.data.masks import boxes_of, encode_mask
from vit_jax.data.sources.base import Source
from vit_jax.errors import UserError
from vit_jax.evaluators import average_precision as ap
from vit_jax.evaluators import mask_metrics as mm
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.interactive_segmentation import next_click
from vit_jax.evaluators.suite import Suite
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.parallel.mesh import make_mesh

SIZE = (12, 16)
INPUTS = ImageInputs(size=SIZE, resize="squash", interpolation="bilinear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionsConfig:
    """A mask is all pixels of the levels of its foreground points, or the inside of its box."""

    image_size: tuple[int, int] = SIZE

    def make(self, **execution: Any) -> "Regions":
        return Regions()


class Regions(nnx.Module):
    """Of several masks the second has the highest score, the third is inverted."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def layers_above(self):
        return {}

    def embed_image(self, images, sizes):
        return jnp.rint((images * 0.5 + 0.5) * 255)[..., :1]

    def predict_masks(self, embedded, points, labels, masks=None, *, multimask=True):
        levels, (y, x) = embedded[..., 0], jnp.mgrid[: SIZE[0], : SIZE[1]]
        at = jnp.rint(points).astype(jnp.int32)
        image = jnp.arange(len(levels))[:, None, None]
        level = levels[image, at[..., 1], at[..., 0]]
        same = levels[:, None, None] == level[..., None, None]
        shown = jnp.any(same & (labels == 1)[..., None, None], axis=2)
        shown &= ~jnp.any(same & (labels == 0)[..., None, None], axis=2)
        (x0, y0), (x1, y1) = ((p[..., 0, None, None], p[..., 1, None, None])
                              for p in (points[:, :, 0], points[:, :, 1]))  # fmt: skip
        inside = (x + 0.5 > x0) & (x + 0.5 < x1) & (y + 0.5 > y0) & (y + 0.5 < y1)
        boxed = (labels[:, :, :1] == 2)[..., None]
        logits = jnp.where(jnp.where(boxed, inside, shown), 1.0, -1.0) * self.scale[...]
        if masks is not None:
            logits += 0 * masks
        found = [0 * logits - 1, logits, -logits] if multimask else [logits]
        scores = jnp.asarray([0.1, 0.9, 0.2] if multimask else [0.5])
        return {
            "masks": jnp.stack(found, axis=2),
            "scores": jnp.broadcast_to(scores, (*logits.shape[:2], len(found))),
        }


class Scenes(Source):
    """Images of levels in blocks of 4 x 4 px; an object is one to three of the levels."""

    class_names = ("one", "two")

    def __init__(self, count=5):
        rng = np.random.default_rng(0)
        self.examples, self.levels = [], []
        for i in range(count):
            levels = rng.permutation(12).reshape(3, 4).repeat(4, 0).repeat(4, 1).astype(np.uint8)
            order = rng.permutation(12)
            objects = [order[:1], order[1:3], order[3:6]][: i % 4]
            masks = [np.isin(levels, values) for values in objects]
            self.levels.append(levels)
            self.examples.append({
                "key": str(i),
                "image": np.repeat(levels[..., None], 3, axis=2),
                "boxes": boxes_of(np.reshape(masks, (-1, *SIZE)).astype(bool)),
                "names": [self.class_names[j % 2] for j in range(len(masks))],
                "segmentation": masks,
            })  # fmt: skip

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def make_embedder(source, devices=8, config=None, inputs=INPUTS):
    embedder = Embedder(
        ModelDef(config or RegionsConfig()), inputs=inputs,
        mesh=make_mesh(devices=jax.devices()[:devices]), batch_size=4,
    )  # fmt: skip
    embedder._sources = {("scenes", None): source}
    return embedder


def evaluate(kind, source, devices=8, **keys):
    suite = Suite({kind: {"x": {"data": "scenes", **keys}}}, make_embedder(source, devices))
    found = suite.run({"scale": np.float32(1)})
    return {name.removeprefix(f"{kind}/x/"): value for name, value in found.items()}


def by_hand(source, points):
    """IoU and boundary F-score after each number of points, and from boxes."""
    found = {}
    for example, levels in zip(source.examples, source.levels, strict=True):
        for target in example["segmentation"]:
            mask, shown, hidden = np.zeros(SIZE, bool), [], []
            for k in range(1, max(points) + 1):
                (x, y), inside = next_click(mask, target)
                (shown if inside else hidden).append(levels[y, x])
                mask = np.isin(levels, shown) & ~np.isin(levels, hidden)
                if k in points:
                    found.setdefault(f"iou@{k}", []).append(mm.mean_iou([mm.overlap(mask, target)]))
                    found.setdefault(f"boundary_f@{k}", []).append(mm.boundary_f(mask, target))
                if k == 1:
                    both = [mm.mean_iou([mm.overlap(m, target)]) for m in (mask, ~mask)]
                    found.setdefault("best_iou@1", []).append(max(both))
            x0, y0, x1, y1 = boxes_of(target[None])[0].astype(int)
            box = np.zeros(SIZE, bool)
            box[y0:y1, x0:x1] = True
            found.setdefault("iou_box", []).append(mm.mean_iou([mm.overlap(box, target)]))
            found.setdefault("boundary_f_box", []).append(mm.boundary_f(box, target))
    return {name: np.mean(values) for name, values in found.items()}


def test_clicks_and_boxes():
    source = Scenes()
    expected = by_hand(source, (1, 2, 3))
    assert expected["iou@1"] < expected["iou@2"] < expected["iou@3"] == 1
    found = evaluate("interactive_segmentation", source, points=(1, 2, 3), max_objects=2)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    other = evaluate("interactive_segmentation", source, 1, points=(2,), boxes=False)
    assert other.keys() == {"best_iou@1", "iou@2", "boundary_f@2"}
    assert other["iou@2"] == found["iou@2"]


class Detected(Scenes):
    """Boxes of a detector, shifted, with scores; of an image that is not there as well."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(1)
        for example in self.examples:
            del example["segmentation"]
            example["boxes"] = example["boxes"] + rng.integers(0, 2, example["boxes"].shape)
            example["scores"] = rng.random(len(example["names"])).astype(np.float32)
        self.examples = [dict(self.examples[1], key="other"), *self.examples[::-1]]


@pytest.mark.parametrize("boxes", ["", "detected"])
def test_average_precision_of_masks_of_boxes(boxes):
    """The mask of a box is its inside."""
    source, given = Scenes(), Detected() if boxes else Scenes()
    by_key, annotated, detected = {each["key"]: each for each in given.examples}, [], []
    for example in source.examples:
        labels, found = [np.array([source.class_names.index(name) for name in each["names"]], int)
                         for each in (example, by_key[example["key"]])], []  # fmt: skip
        prompt = by_key[example["key"]]
        for x0, y0, x1, y1 in prompt["boxes"].astype(int):
            inside = np.zeros(SIZE, bool)
            inside[y0:y1, x0:x1] = True
            found.append(encode_mask(inside))
        targets = example["segmentation"]
        areas = np.array([mask.sum() for mask in targets], np.float64)
        crowd = np.zeros(len(targets), bool)
        masks = [encode_mask(mask) for mask in targets]
        scores = prompt.get("scores", np.full(len(found), 0.5))
        annotated.append(ap.Annotated(example["boxes"], labels[0], crowd, areas, masks=masks))
        detected.append(ap.Detected(prompt["boxes"], labels[1], scores, masks=found))
    curves = ap.compute_curves(annotated, detected, 2)
    embedder = make_embedder(source)
    embedder._sources["detected", None] = given
    keys = {"data": "scenes", "boxes": boxes, "max_objects": 2}
    suite = Suite({"instance_segmentation": {"x": keys}}, embedder)
    result = suite.run({"scale": np.float32(1)})
    stored = suite.evaluators["instance_segmentation/x"].predicted(2)
    with_objects = [x for x in source.examples if x["names"]]
    counts = [f"{len(each['names'])} objects" for each in (with_objects[0], with_objects[-1])]
    assert stored["caption"].tolist() == [[n, "predicted", "annotated"] for n in counts]
    assert stored["shot"].shape == (2, 3)
    assert 0 < ap.average_precision(curves) < 1
    for name, iou in (("AP", None), ("AP50", 0.5), ("AP75", 0.75)):
        expected = ap.average_precision(curves, iou=iou)
        assert result[f"instance_segmentation/x/{name}"] == pytest.approx(expected, abs=1e-6)
    if boxes:
        given.examples = given.examples[:1]
        with pytest.raises(UserError, match="no box of a class and an image of scenes, as 0: exp"):
            Suite({"instance_segmentation": {"x": keys}}, embedder)


def test_the_next_click():
    target = np.zeros((9, 9), bool)
    target[1:6, 1:6] = True
    assert next_click(np.zeros_like(target), target) == ((3, 3), True)
    found = target.copy()
    found[1:4, 1:4] = False
    assert next_click(found, target) == ((2, 2), True)
    found[1:4, 1:4] = True
    found[2, 2] = False
    found[:, 6:] = True
    (x, _), inside = next_click(found, target)
    assert (x, inside) == (7, False)
    assert next_click(target, target) == ((3, 3), True)


@pytest.mark.parametrize(
    ("resize", "size"), [("squash", (20, 30)), ("corner", (20, 30)), ("corner", (30, 20))]
)
def test_logits_return_to_the_pixels_of_the_image(resize, size):
    """A half plane keeps its place; padding is left out."""
    inputs = ImageInputs(size=(32, 32), resize=resize, interpolation="bilinear")
    cells = 8
    for axis in (0, 1):
        extent = inputs.extent(*size)[axis]
        middle = size[axis] / 2 / extent * cells  # cells
        ramp = np.arange(cells) + 0.5 - middle
        logits = np.broadcast_to(ramp[:, None] if axis == 0 else ramp, (cells, cells))
        found = inputs.restore(np.float32(logits), *size)
        assert found.shape == size
        expected = np.arange(size[axis]) >= size[axis] // 2
        line = (found > 0).all(axis=1 - axis)
        np.testing.assert_array_equal(line, expected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherConfig(RegionsConfig):
    def make(self, **execution: Any) -> "Other":
        return Other()


class Other(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def layers_above(self):
        return {}


class Empty(Scenes):
    def __init__(self):
        super().__init__(1)


@pytest.mark.parametrize(
    ("source", "config", "keys", "message"),
    [
        (Scenes, OtherConfig(), {}, "need a model that takes them, as sam_vit_b; found OtherConf"),
        (Scenes, None, {"points": (0,)}, r"points=\(0,\): expected numbers of points"),
        (Scenes, None, {"max_objects": 0}, "max_objects=0: expected 1 or more"),
        (Empty, None, {}, "scenes has no object"),
    ],
)
def test_what_does_not_fit_is_refused(source, config, keys, message):
    embedder = make_embedder(source(), config=config)
    with pytest.raises(UserError, match=message):
        Suite({"interactive_segmentation": {"x": {"data": "scenes", **keys}}}, embedder)
