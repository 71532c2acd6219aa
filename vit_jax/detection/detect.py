"""Detection by words or by an example image.

detector = vit_jax.create_model("owlv2_base_patch16_ensemble", weights="owlv2/")
found = vit_jax.detect(detector, "street.jpg", ["a red car", "a cat"], threshold=0.2)
for box, score, name in zip(found.boxes, found.scores, found.names):  # box: x0, y0, x1, y1 in px
    ...
"""

from collections.abc import Sequence
from typing import Any

from vit_jax.detection.images import list_images
from vit_jax.detection.results import (
    Results,
    check_fractions,
    check_names,
    check_output,
)
from vit_jax.detection.runners import runner_of
from vit_jax.detection.search import Search
from vit_jax.detection.selection import Detections
from vit_jax.errors import UserError
from vit_jax.evaluators import prompts
from vit_jax.evaluators.batching import progress_bar
from vit_jax.evaluators.embedding import check_positive
from vit_jax.paths import StrPath
from vit_jax.pretrained.model import PretrainedModel


def detect(
    detector: PretrainedModel,
    images: Any,
    names: Sequence[str] | None = None,
    *,
    query_image: Any = None,
    threshold: float | None = None,
    text_threshold: float | None = None,
    templates: str | Sequence[str] = ("{}",),
    nms_threshold: float | None = None,
    batch_size: int = 8,
    tile_size: int = 0,
    tile_overlap: float = 0.25,
    output: StrPath | None = None,
) -> Detections | list[Detections]:
    """Detects objects by their names, or objects like that of an image.

    A detector predicts as many boxes as it has queries (the patches of OWL), each of which counts
    for its most probable name. Embeddings of names are kept for later calls. Grounding DINO reads
    the names as captions; the probability of a name is the mean over its tokens.

    Args:
        detector: model from `create_model`.
        images: an image (path, bytes, PIL image or array, see `data.images.read_image`), a list of
            images, or a folder. Images of a folder that cannot be read are left out and counted.
        names: names or phrases to look for, as "a red car". The first of equal names counts.
        query_image: image that shows an object to look for, instead of `names` (one-shot
            detection, Minderer et al. 2022, section 4.4).
        threshold: score that a detection exceeds; None for 0.1, for 0.25 with Grounding DINO, and
            for 0 with a query image.
        text_threshold: None for the names that were given. A number makes models that read
            captions name each box by a phrase, as in transformers: the tokens whose probability
            exceeds the number. The score is then the highest probability of a token, and labels are
            the positions of phrases in the order in which they are found.
        templates: prompt templates with one `{}`, whose embeddings are averaged, or the name of a
            set of them, as "clip_imagenet". Grounding DINO takes one.
        nms_threshold: IoU above which the lower score of two boxes of a name is left out, 1 for
            none; None for 1, for 0.3 with a query image, and for 0.5 with tiles. Names that take
            several captions compete with each other; None is then at most 0.7.
        batch_size: images or tiles per batch.
        tile_size: side of overlapping tiles, px, in which objects are looked for besides the whole
            image; 0 for none. Small objects in large images need it.
        tile_overlap: smallest fraction of its side that a tile shares with the next one.
        output: file for the detections in COCO's JSON, which the source `coco:` reads.

    Returns:
        The detections of the image; for a list or a folder those of each image.

    Raises:
        UserError: a model that is no detector; no names, an empty or too long one; an image that
            cannot be read; an argument outside its range, or one that the model does not take.

    Example:
        >>> import numpy as np, vit_jax
        >>> text = {"vocab_size": 49408}  # that of CLIP's tokenizer
        >>> detector = vit_jax.create_model("owl_emoji", tokenizer="clip", text=text)
        >>> image = np.zeros((90, 120, 3), np.uint8)
        >>> found = detect(detector, image, ["a cat", "a rocket"], threshold=0.0)
        >>> len(found.boxes) == len(found.scores) == len(found.labels)
        True
    """
    runner = runner_of(detector)
    check_positive(batch_size, "batch_size")
    check_fractions(
        threshold=threshold,
        text_threshold=text_threshold,
        nms_threshold=nms_threshold,
        tile_overlap=tile_overlap,
    )
    if tile_size < 0 or tile_overlap == 1:
        raise UserError(
            f"tile_size={tile_size}, tile_overlap={tile_overlap}: expected a side in pixels, and a "
            "fraction below 1"
        )
    detector.spec.inputs.extent(1, 1)  # before any image is read
    listed = list_images(images)
    check_output(output, listed)
    if query_image is not None and names is not None:
        raise UserError("expected names or query_image; found both")
    finder = (
        runner.find_like(detector, query_image)
        if query_image is not None
        else runner.find_names(
            detector, check_names(names), prompts.templates(templates), text_threshold
        )
    )
    score = finder.threshold if threshold is None else threshold
    overlap = min(finder.nms_threshold, 0.5) if tile_size else finder.nms_threshold
    overlap = overlap if nms_threshold is None else nms_threshold
    search = Search(detector, finder.find, batch_size, tile_size, tile_overlap)
    given = finder.classes if names is None or text_threshold is not None else names
    results = Results(listed, given, finder.classes)
    with progress_bar("detect", total=len(listed.sources)) as bar:
        for row, height, width, boxes in search.run(listed):
            results.add(row, height, width, finder.select(boxes, score, overlap))
            bar.update()
    return results.finish(output)
