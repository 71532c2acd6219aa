"""Detectors that read captions get the metrics of a detector that reads names one by one."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from box_reader import NAMES, Reader, ReaderConfig, make_reader
from scipy.special import expit
from test_detection import Scenes, iou_of
from test_phrase_grounding import Captions
from test_phrase_grounding import recall_by_hand as recall_of_phrases

from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators.suite import Suite

TEMPLATE_IDS = {".": 50, "the": 51, "a": 52, "and": 53}
START, END = 60, 61


class Words(Tokenizer):
    """A token per word and per full stop, and two marks."""

    def __init__(self, context_length):
        self.context_length = context_length

    def lengths(self, texts):
        return [2 + len(re.findall(r"\w+|\.", text)) for text in texts]

    def with_spans(self, text):
        found = list(re.finditer(r"\w+|\.", text))[: self.context_length - 2]
        known = {name: i + 1 for i, name in enumerate(NAMES)} | TEMPLATE_IDS
        ids = [START, *(known[each[0]] for each in found), END]
        spans = [(0, 0), *(each.span() for each in found), (0, 0)]
        rest = self.context_length - len(ids)
        return np.int32(ids + [0] * rest), np.int32(spans + [(0, 0)] * rest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig(ReaderConfig):
    dense: bool = False

    def make(self, **execution):
        return (Dense if self.dense else CaptionReader)()


class CaptionReader(Reader):
    """The tokens of a name have its logit, all others a high one."""

    detect = property()  # as if it were absent

    def embed_caption(self):
        raise AssertionError

    def __call__(self, images, tokens, *, sizes=None, rng=None):
        names = (tokens > 0) & (tokens <= len(NAMES))
        queries = jax.nn.one_hot(tokens - 1, len(NAMES))
        found = Reader.detect(self, images, queries, names)
        logits = jnp.where(names[:, None], found["logits"], 8.0)
        logits = jnp.where(tokens[:, None] > 0, logits, jnp.finfo(jnp.float32).min)
        # The inputs show an area of twice the image; boxes are relative to the image.
        return {"boxes": found["boxes"] * 2, "logits": logits}


class Dense(CaptionReader):
    predicts_centerness = True

    def __call__(self, images, tokens, *, sizes=None, rng=None):
        found = super().__call__(images, tokens, sizes=sizes)
        return found | {"centerness": jnp.broadcast_to(jnp.arange(8.0) - 4, (len(images), 8))}


def suite(evaluator, source, config=None, context_length=16, **keys):
    embedder = make_reader({"data": source}, config=config)
    if config is not None:
        embedder.tokenizer = Words(context_length)
    return Suite({evaluator: {"x": {"data": "data", **keys}}}, embedder)


def run(*arguments, **keys):
    return suite(*arguments, **keys).run({"scale": jnp.asarray(1.0)})


@pytest.mark.parametrize(
    ("context_length", "keys"),
    [(16, {}), (6, {}), (16, {"negatives": 0}), (6, {"negatives": 2})],
)
def test_same_precision_as_of_names(context_length, keys):
    """In one caption, or in several of two names each, of which images have different numbers."""
    found = run("detection", Scenes(), CaptionConfig(), context_length, **keys)
    assert found == pytest.approx(run("detection", Scenes(), **keys), abs=1e-6)
    assert found["detection/x/AP"] > 0.1


def suppressed(boxes, scores, classes):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in kept if classes[j] == classes[i]]
        if all(iou_of(boxes[i], boxes[j], False) <= 0.6 for j in rivals):
            kept.append(i)
    return kept


def test_boxes_of_a_dense_head_are_suppressed():
    """Scores are the roots of probability and centerness; an object counts once."""
    source = Scenes()
    for example in source.examples:  # each box twice, one pixel apart
        example["image"][4:, :5] = example["image"][:4, :5]
        example["image"][4:, 0, 0] += 1
    found = suite("detection", source, CaptionConfig(dense=True))
    evaluator = found.evaluators["detection/x"]
    detected = evaluator._detections({"scale": jnp.asarray(1.0)})
    fewer = 0
    for example, each in zip(source.examples, detected, strict=True):
        pixels = example["image"].astype(np.float64)
        percent = pixels[:, :4, 0]
        extent = np.array([10, 16] * 2)
        center, sides = np.split(percent / 100 * extent, 2, axis=1)
        boxes = np.repeat(np.concatenate([center - sides / 2, center + sides / 2], 1), 5, axis=0)
        classes = np.tile(np.arange(5), 8)
        of_class = pixels[:, 4, :1] == np.arange(5)
        probability = expit(np.where(of_class, pixels[:, 4, 2:] / 25, 0) - 2)
        scores = np.sqrt(probability * expit(np.arange(8.0) - 4)[:, None]).ravel()
        kept = suppressed(boxes, scores, classes)
        assert len(kept) == len(each.scores)
        np.testing.assert_allclose(each.scores, scores[kept], rtol=1e-5)
        fewer += len(scores) - len(kept)
    assert fewer > 100


def test_phrases_of_the_caption():
    """Phrases are the tokens of their spans in the caption of the image."""
    source = Captions()
    for example in source.examples:
        names = example["names"]
        example["captions"] = [" and ".join(names)]
        starts = np.cumsum([0, *(len(name) + len(" and ") for name in names)])
        example["spans"] = [
            [(int(start) + 4, int(start) + len(name))]
            for start, name in zip(starts, names, strict=False)
        ]
    found = run("phrase_grounding", source, CaptionConfig(), 32, at=(1, 2))
    for k in (1, 2):
        assert found[f"phrase_grounding/x/recall@{k}"] == pytest.approx(
            recall_of_phrases(source, k, 0.5), abs=1e-6
        )


def test_one_template():
    with pytest.raises(UserError, match="reads names as captions: expected one template; found 2"):
        suite("detection", Scenes(), CaptionConfig(), templates=("{}", "a {}"))
