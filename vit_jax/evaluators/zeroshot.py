"""Zero-shot classification by prompts (CLIP, section 3.1)."""

from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder, check_templates
from vit_jax.models.functional import Params

GALLERIES = ("all", "present")


class ZeroShot:
    """Accuracy of choosing a picture's class by the text closest to it.

    Metrics: `top1`, `top5`, shares in [0, 1] of all pictures of the source.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        data: str,
        templates: Sequence[str] = ("{}",),
        classes: str = "all",
        names_file: str | None = None,
    ):
        """Opens the source.

        Args:
            embedder: of pictures and texts.
            data: source with labels, as emoji:heldout_names.
            templates: prompts with one `{}`.
            classes: "all" classes of the source compete, or those "present" in its pictures.
            names_file: for a flat folder, the file of its labels.
        """
        check_templates(templates)
        if classes not in GALLERIES:
            raise UserError(f"classes={classes!r}: expected one of {', '.join(GALLERIES)}")
        self._embedder, self._templates = embedder, tuple(templates)
        self._source = open_source(data, names_file)
        names, labels = self._source.class_names, self._source.labels
        if names is None or labels is None:
            raise UserError(f"{data} has no classes: zero-shot classification needs them")
        gallery = np.unique(labels) if classes == "present" else np.arange(len(names))
        self.class_names = [names[i] for i in gallery]
        self._labels = np.searchsorted(gallery, labels)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields top1 and top5."""
        images = self._embedder.images(params, self._source)
        classes = self._embedder.prompts(params, self.class_names, self._templates)
        ranks = rank_of_target(images @ classes.T, self._labels)
        yield "top1", float(np.mean(ranks < 1))
        yield "top5", float(np.mean(ranks < 5))


def rank_of_target(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Place of the right column in each row, 0 for the best.

    Args:
        scores: (N, C).
        targets: (N,) column of each row.

    Returns:
        (N,) int. Among equal scores the target comes last, so that a constant model scores 0.
    """
    target = np.take_along_axis(scores, targets[:, None], axis=1)
    return np.sum(scores >= target, axis=1) - 1
