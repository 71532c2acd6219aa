"""Masks by words on scenes of emoji: dense CLIP, CLIPSeg, and a detector with SAM, in one table.

    python -m benchmarks.masks_by_words --clip runs/clip_emoji --clipseg runs/segment_emoji \
        --detector runs/detect_emoji --sam runs/sam_emoji

Each method is asked, in each scene, for the names in it and for others. The masks of a name are
joined and compared with the union of its drawings. Names that are longer than a model's context are
not asked for, so that they have no mask. The threshold of a method is the one of eleven
with the best mIoU on other scenes, of names that the models were trained with. Prints Markdown.
"""

from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

import vit_jax
from vit_jax import cli
from vit_jax.data.masks import decode_mask
from vit_jax.data.sources import Source, open_source
from vit_jax.evaluators import mask_metrics
from vit_jax.segmentation.results import Segmentation

_CLIP = flags.DEFINE_string("clip", None, "Run of a dual encoder.")
_CLIPSEG = flags.DEFINE_string("clipseg", None, "Run of CLIPSeg.")
_DETECTOR = flags.DEFINE_string("detector", None, "Run of a detector, for --sam.")
_SAM = flags.DEFINE_string("sam", None, "Run of SAM, for --detector.")
_SCENES = flags.DEFINE_integer("scenes", 200, "Scenes per split.", lower_bound=1)
_OTHERS = flags.DEFINE_integer("others", 20, "Names that a scene does not show.", lower_bound=0)
_OPTIONS = flags.DEFINE_string(
    "options", "size=64&max_drawings=4&min_scale=0.3&max_scale=0.6", "Options of the scenes."
)

SPLITS = ("test", "heldout_names", "heldout_artist")
THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)

# Image, names and threshold to masks.
Method = Callable[[np.ndarray, Sequence[str], float], Segmentation]
Pairs = list[tuple[int, int]]


def methods() -> dict[str, Method]:
    """Opens the models that flags name."""
    found: dict[str, Method] = {}

    def add(label: str, run: str, detector: str | None = None) -> None:
        model = vit_jax.create_model(weights=run)
        boxes = vit_jax.create_model(weights=detector) if detector else None
        tokenizer = (boxes or model).tokenize

        def method(image: np.ndarray, names: Sequence[str], threshold: float) -> Segmentation:
            lengths = zip(names, tokenizer.lengths(names), strict=True)
            fit = [name for name, length in lengths if length <= tokenizer.context_length]
            found = vit_jax.segment(model, image, fit, detector=boxes, threshold=threshold)
            assert isinstance(found, Segmentation)  # of one image
            return found

        found[label] = method

    if _CLIP.value:
        add("dense CLIP, not trained for it", _CLIP.value)
    if _CLIPSEG.value:
        add("CLIPSeg", _CLIPSEG.value)
    if _DETECTOR.value and _SAM.value:
        add("detector and SAM", _SAM.value, _DETECTOR.value)
    return found


def compare(method: Method, source: Source, rows: range, threshold: float) -> Pairs:
    """Overlap of the masks of each name of each scene with its drawings.

    Args:
        method: see `Method`.
        source: scenes.
        rows: scenes that are compared.
        threshold: threshold of the method.

    Returns:
        Pixels of intersection and union for each pair of a scene and a name that it shows.
    """
    every, pairs = source.class_names or [], []
    for row in rows:
        scene = source[row]
        image = scene["image"]
        shown = list(dict.fromkeys(scene["names"]))
        others = np.random.default_rng(row).permutation(every)
        asked = shown + [str(name) for name in others if name not in shown][: _OTHERS.value]
        found = method(image, asked, threshold)
        for name in shown:
            target, mask = np.zeros((2, *image.shape[:2]), np.bool_)
            for own, stored in zip(scene["names"], scene["segmentation"], strict=True):
                if own == name:
                    target |= decode_mask(stored, *target.shape)
            for own, each in zip(found.names, found.masks, strict=True):
                if own == name:
                    mask |= each
            pairs.append(mask_metrics.overlap(mask, target))
    return pairs


def main() -> None:
    """Prints a row for each method and split."""
    print("| method | threshold | scenes | mIoU | oIoU | P@50 |\n|---|--:|---|--:|--:|--:|")
    sources = {
        split: open_source(f"emoji_scenes:{split}?{_OPTIONS.value}&count={2 * _SCENES.value}")
        for split in SPLITS
    }
    tuned, tested = range(_SCENES.value, 2 * _SCENES.value), range(_SCENES.value)
    for name, method in methods().items():
        quality = {
            threshold: mask_metrics.mean_iou(compare(method, sources["test"], tuned, threshold))
            for threshold in THRESHOLDS
        }
        best = max(quality, key=quality.__getitem__)
        for split, source in sources.items():
            pairs = compare(method, source, tested, best)
            right = np.mean([2 * both >= either for both, either in pairs])
            values = mask_metrics.mean_iou(pairs), mask_metrics.overall_iou(pairs), float(right)
            cells = " | ".join(f"{100 * value:.1f}" for value in values)
            print(f"| {name} | {best} | {split} | {cells} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
