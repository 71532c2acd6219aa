"""What the runs predicted, and views of their models: one section of the page each."""

import dataclasses
from collections.abc import Callable, Sequence

from bokeh.models import LayoutDOM

from vit_jax.evaluators import predictions
from vit_jax.evaluators.outcomes import FALSE, MISSED
from vit_jax.evaluators.predictions import Arrays
from vit_jax.evaluators.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from vit_jax.reporting.confusion import plot_confusion
from vit_jax.reporting.galleries import (
    PAGE_BYTES,
    Query,
    Shot,
    attention,
    box_gallery,
    captioned,
    data_uri,
    mistakes,
    mosaic,
    queries,
    reconstructions,
)
from vit_jax.reporting.groups import Group
from vit_jax.reporting.reliability import plot_precision, plot_reliability

# Name and number of the variant, and the stored predictions of a run.
Found = tuple[str, int, Arrays]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images or queries below a title.

    Attributes:
        title: title.
        rows: rows of images.
        queries: queries with their candidates.
        open: whether the images are visible before the reader clicks on the title.
    """

    title: str
    rows: Sequence[Sequence[Shot]] = ()
    queries: Sequence[Query] = ()
    open: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: title.
        note: how it is to be read.
        plots: plots of Bokeh.
        galleries: images below the plots.
    """

    title: str
    note: str
    plots: Sequence[LayoutDOM] = ()
    galleries: Sequence[Gallery] = ()


def sections(groups: Sequence[Group]) -> list[Section]:
    """Builds the sections of all evaluations whose predictions some run has stored.

    Curves show every run, matrices and images the first run of each variant that has them.

    Args:
        groups: groups of runs.

    Raises:
        UserError: stored predictions are damaged.
    """
    by_name: dict[str, list[Found]] = {}
    for number, group in enumerate(groups):
        for run in group.runs:
            stored = predictions.load_all(run.workdir) if run.workdir is not None else {}
            for name, arrays in stored.items():
                if str(arrays["kind"]) in _BUILDERS:
                    by_name.setdefault(name, []).append((group.name, number, arrays))
    share = PAGE_BYTES // max(1, 2 * sum(len(_first_of_each(f)) for f in by_name.values()))
    return [
        _BUILDERS[str(found[0][2]["kind"])](name, found, share)
        for name, found in sorted(by_name.items(), key=lambda item: item[0].startswith("model/"))
    ]


def _first_of_each(found: Sequence[Found]) -> list[Found]:
    """The first run of each variant."""
    return [each for i, each in enumerate(found) if each[1] not in [f[1] for f in found[:i]]]


def _classification(name: str, found: Sequence[Found], share: int) -> Section:
    firsts = _first_of_each(found)
    return Section(
        name,
        "Reliability: the accuracy of predictions of equal confidence, on the diagonal if the "
        "model is calibrated. Confusion: the classes of the most frequent mistakes, shaded by the "
        "fraction of the true class. Mistakes: those of the highest probability.",
        [plot_reliability(found), *(plot_confusion(arrays, title) for title, _, arrays in firsts)],
        [
            Gallery(f"Worst mistakes of {title}", [mistakes(arrays, 2 * share)], open=number == 0)
            for title, number, arrays in firsts
        ],
    )


def _retrieval(name: str, found: Sequence[Found], share: int) -> Section:
    return Section(
        name,
        "Queries from the best to the worst rank, each with its nearest candidates and their "
        "cosine similarities; correct ones have a green line.",
        galleries=[
            Gallery(
                f"{words} of {title}",
                queries=queries(arrays, direction, share),
                open=number == 0,
            )
            for title, number, arrays in _first_of_each(found)
            for direction, words in (
                (IMAGE_TO_TEXT, "Texts for images"),
                (TEXT_TO_IMAGE, "Images for texts"),
            )
        ],
    )


def _detection(name: str, found: Sequence[Found], share: int) -> Section:
    return Section(
        name,
        "Precision is the mean over classes. False boxes: those of the highest score that match no "
        "object of their class at an IoU of 0.5. Missed boxes: objects without a detection.",
        [plot_precision(found)],
        [
            Gallery(f"{words} of {title}", [box_gallery(arrays, outcome, share)], open=number == 0)
            for title, number, arrays in _first_of_each(found)
            for outcome, words in ((FALSE, "False boxes"), (MISSED, "Missed boxes"))
        ],
    )


def _segmentation(name: str, found: Sequence[Found], share: int) -> Section:
    note = "Images at even distances, with the predicted and the annotated masks."
    return _captioned(name, note, found, share)


def _grounding(name: str, found: Sequence[Found], share: int) -> Section:
    note = "Phrases at even distances: the box of the highest score, then the annotated boxes."
    return _captioned(name, note, found, share)


def _captioned(title: str, note: str, found: Sequence[Found], share: int) -> Section:
    firsts = _first_of_each(found)
    rows = [(name, number, captioned(arrays, 2 * share)) for name, number, arrays in firsts]
    return _view(title, note, rows)


def _attention(_: str, found: Sequence[Found], share: int) -> Section:
    firsts = _first_of_each(found)
    return _view(
        "Attention",
        "Of the class token, or of the mean of the patches where that is pooled: rollout through "
        "all blocks (Abnar & Zuidema 2020), and heads of the last block. The largest weight of "
        "each map is brightest.",
        [(title, number, attention(arrays, 2 * share)) for title, number, arrays in firsts],
    )


def _positions(_: str, found: Sequence[Found], share: int) -> Section:
    firsts = _first_of_each(found)
    images = [(title, number, mosaic(arrays["similarity"])) for title, number, arrays in firsts]
    return _view(
        "Similarity of positions",
        "Cosine similarity of the learned position of each patch with those of all patches, from "
        "the smallest (dark) to 1.",
        [
            (title, number, [[Shot(data_uri(image))]] if len(image) <= 2 * share else [])
            for title, number, image in images
        ],
    )


def _reconstruction(_: str, found: Sequence[Found], share: int) -> Section:
    firsts = _first_of_each(found)
    return _view(
        "Masked reconstructions",
        "Visible patches are those of the image. Where normalised patches are predicted, mean and "
        "deviation are those of the image's patch.",
        [(title, number, reconstructions(arrays, 2 * share)) for title, number, arrays in firsts],
    )


def _view(title: str, note: str, rows: Sequence[tuple[str, int, list[list[Shot]]]]) -> Section:
    galleries = [Gallery(name, shots, open=number == 0) for name, number, shots in rows]
    return Section(title, note, galleries=galleries)


_BUILDERS: dict[str, Callable[[str, Sequence[Found], int], Section]] = {
    "classification": _classification,
    "retrieval": _retrieval,
    "detection": _detection,
    "segmentation": _segmentation,
    "grounding": _grounding,
    "attention": _attention,
    "positions": _positions,
    "reconstruction": _reconstruction,
}
