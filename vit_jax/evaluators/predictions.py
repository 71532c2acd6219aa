"""What evaluators predicted, as one `.npz` file per evaluation in the folder of a run.

`WORKDIR/predictions/TYPE/NAME/predictions.npz` holds the arrays of `config.evals.TYPE.NAME` after
the last step, and thumbnails of a few images, so that a report needs neither model nor data. NumPy
reads the file without pickle. The array `kind` is "classification", "retrieval", "detection",
"segmentation" or "grounding"; the methods `predicted` of these evaluators describe the others.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from vit_jax.atomic_files import atomic_write
from vit_jax.data.images import read_image
from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators import metrics
from vit_jax.evaluators.drawing import paint_masks
from vit_jax.inputs import composite
from vit_jax.paths import StrPath, as_path

FOLDER, FILE_NAME = "predictions", "predictions.npz"
SHOWN = 16
"""Number of images of each kind of mistake that are stored."""
TOP = 5
"""Number of predictions per example that are stored."""

_SIDE, _QUALITY = 96, 80  # px and quality of thumbnails, 2 to 4 kB each

Arrays = Mapping[str, np.ndarray]


@runtime_checkable
class Predicts(Protocol):
    """An evaluator whose predictions can be stored."""

    def predicted(self, limit: int) -> Arrays:
        """Returns what the last `run` predicted.

        Args:
            limit: largest number of examples, boxes or ranks.
        """
        ...


def save(workdir: StrPath, name: str, arrays: Arrays) -> None:
    """Writes the predictions of an evaluation atomically.

    Args:
        workdir: folder of the run, local or in a bucket.
        name: full name of the evaluation, as zeroshot/all_names.
        arrays: arrays by name, none of them of objects.
    """
    path = as_path(workdir) / FOLDER / name / FILE_NAME
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_all(workdir: StrPath) -> dict[str, dict[str, np.ndarray]]:
    """Reads the predictions of a run.

    Args:
        workdir: folder of the run, local or in a bucket.

    Returns:
        Arrays by the full name of the evaluation, in alphabetical order.

    Raises:
        UserError: a file is damaged.
    """
    root = as_path(workdir) / FOLDER
    found = {}
    for path in sorted(root.glob(f"*/*/{FILE_NAME}")):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                found["/".join(path.parts[-3:-1])] = dict(file)
        except Exception as error:  # a damaged archive can raise almost anything
            raise UserError(f"{path} cannot be read: {error}; remove it") from None
    return found


def evenly(count: int, limit: int) -> Int[np.ndarray, " chosen"]:
    """Chooses at most `limit` of `count` positions at even distances, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))


def thumbnail(pixels: UInt8[np.ndarray, "_ _ _channels"] | Image.Image) -> bytes:
    """Encodes a small copy of an image, at most 96 px wide and high, as JPEG.

    Args:
        pixels: image; alpha is composited on white.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(composite(pixels))
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def thumbnails(source: Source, rows: Sequence[int], *, max_pixels: int) -> np.ndarray:
    """Encodes small copies of images of a source.

    Args:
        source: examples with an image each.
        rows: examples.
        max_pixels: largest number of pixels of an image; 0 for any.

    Returns:
        JPEG files, an array of bytes.
    """
    return np.array(
        [thumbnail(read_image(source[int(row)]["image"], max_pixels=max_pixels)) for row in rows],
        np.bytes_,
    )


def top_classes(
    scores: Float[np.ndarray, "examples classes"],
    probabilities: Float[np.ndarray, "examples classes"],
    targets: Int[np.ndarray, " examples"],
) -> dict[str, np.ndarray]:
    """Reduces scores to the predictions that are stored.

    Args:
        scores: scores; the class with the largest one is the prediction.
        probabilities: probability of each class.
        targets: correct class of each example.

    Returns:
        `label` int32 (N,); `top` int32 (N, k), the k = 5 classes of the largest scores, of which
        the first is the prediction; `probability` float32 (N, k) of these classes, and
        `label_probability` float32 (N,) of the correct one.
    """
    rows = np.arange(len(scores))
    ordered = scores.astype(np.float32)
    ordered[rows, metrics.predictions(scores)] = np.inf  # the first of equal scores
    count = min(TOP, scores.shape[1])
    top = np.argpartition(-ordered, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(ordered, top, axis=1), axis=1, kind="stable")
    top = np.take_along_axis(top, order, axis=1)
    return {
        "label": targets.astype(np.int32),
        "top": top.astype(np.int32),
        "probability": np.take_along_axis(probabilities, top, axis=1).astype(np.float32),
        "label_probability": probabilities[rows, targets].astype(np.float32),
    }


def classification(
    found: Arrays, names: Sequence[str], source: Source, *, limit: int, max_pixels: int
) -> dict[str, Any]:
    """Builds the stored predictions of a classifier.

    Args:
        found: result of `top_classes` for all examples of the source.
        names: names of the classes.
        source: the examples.
        limit: largest number of examples, which are taken at even distances.
        max_pixels: largest number of pixels of an image; 0 for any.

    Returns:
        The arrays of `top_classes`; `row`, the example in the source; `class`, the names; `worst`,
        positions of the mistakes of the highest probability; `worst_image`, their thumbnails.
    """
    rows = evenly(len(source), limit)
    kept = {name: values[rows] for name, values in found.items()}
    wrong = np.flatnonzero(kept["top"][:, 0] != kept["label"])
    order = np.argsort(-kept["probability"][wrong, 0], kind="stable")
    worst = wrong[order[:SHOWN]]
    return {
        "kind": np.array("classification"),
        "class": np.array(names, np.str_),
        "row": rows.astype(np.int32),
        **kept,
        "worst": worst.astype(np.int32),
        "worst_image": thumbnails(source, rows[worst].tolist(), max_pixels=max_pixels),
    }


def captioned(kind: str, rows: Sequence[Sequence[tuple[bytes, str]]]) -> dict[str, np.ndarray]:
    """Builds stored predictions that are images with captions.

    Args:
        kind: kind of the predictions.
        rows: rows of JPEG files and their captions, equally many in each row.

    Returns:
        `kind`; `shot` and `caption` (rows, columns), the files and their captions.
    """
    return {
        "kind": np.array(kind),
        "shot": np.array([[image for image, _ in row] for row in rows], np.bytes_),
        "caption": np.array([[caption for _, caption in row] for row in rows], np.str_),
    }


def masks(
    image: UInt8[np.ndarray, "height width channels"],
    predicted: Sequence[Bool[np.ndarray, "height width"]],
    annotated: Sequence[Bool[np.ndarray, "height width"]],
    caption: str,
) -> list[tuple[bytes, str]]:
    """Makes thumbnails of an image, of its predicted and of its annotated masks.

    Args:
        image: image; alpha is composited on white.
        predicted: predicted masks.
        annotated: annotated masks.
        caption: caption of the image.
    """
    drawn = [paint_masks(image, found, range(len(found))) for found in (predicted, annotated)]
    captions = (caption, "predicted", "annotated")
    return [*zip(map(thumbnail, (image, *drawn)), captions, strict=True)]
