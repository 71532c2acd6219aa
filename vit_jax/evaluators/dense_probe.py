"""Probes of dense prediction: patches of a frozen backbone and their classes."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32, Int

from vit_jax.errors import UserError
from vit_jax.evaluators import mask_metrics
from vit_jax.evaluators.dense_features import DenseSource, label_fractions, predict_pixels
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.knn import nearest
from vit_jax.evaluators.logistic import LogisticRegression, moments
from vit_jax.models.definition import Params

_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Keys of dense probes.

    Attributes:
        train: source with masks of the training images.
        test: source with masks on which the metrics are computed.
        layer: block or stage of the features; negative ones count from the last.
        patches: number of training patches, drawn at random with equal numbers of each image, or 0
            for all.
        seed: PRNG seed of the patches that are drawn.
    """

    train: str
    test: str
    layer: int = -1
    patches: int = 100_000
    seed: int = 0


class DenseProbe:
    """Linear segmentation (Oquab et al. 2024, DINOv2, section 7.4) by logistic regression.

    A linear classifier is trained on patches, whose class is that of most of their pixels; its
    logits are interpolated to the pixels. DINOv2 trains on pixels with SGD.

    Metrics: `mIoU`, the mean over the classes that are annotated of the intersection over union of
    all pixels, and `pixel_accuracy`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(DenseConfig):
        """Keys of the evaluator.

        Attributes:
            l2: factor of the penalty l2 / 2 * |W|^2 of standardized features, which is added to the
                mean cross-entropy.
        """

        l2: float = 1e-4

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the sources.

        Args:
            config: keys of the evaluator.
            embedder: gives the model, its inputs and the devices.

        Raises:
            UserError: sources without masks or with different classes, or a key with an invalid
                value.
        """
        if config.l2 < 0:
            raise UserError(f"l2={config.l2}: expected 0 or more")
        self._config, self._embedder = config, embedder
        self._sources = _open(config, embedder)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        train, test = self._sources
        features, fractions = _training_patches(train, params, self._config)
        regression = LogisticRegression(
            features,
            np.argmax(fractions, axis=1),
            num_classes=len(train.class_names),
            mesh=self._embedder.mesh,
            scale=moments(features)[1] + 1e-6,
        )
        weights, bias = regression.fit(self._config.l2)
        yield from _metrics(test, params, lambda rows: rows @ weights + bias)


class DenseKnn:
    """Segmentation by the nearest training patches (Balazevic et al. 2023).

    The classes of a patch are the mean of those of the k training patches with the most similar
    features (cosine), weighted by exp(similarity / temperature); they are interpolated to the
    pixels. The classes of a training patch are the fractions of its pixels.

    The metrics are those of `DenseProbe`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(DenseConfig):
        """Keys of the evaluator.

        Attributes:
            k: number of neighbors.
            temperature: temperature of the weights.
        """

        k: int = 30
        temperature: float = 0.02

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the sources. Arguments and errors are those of `DenseProbe`."""
        if config.k < 1 or config.temperature <= 0:
            raise UserError(
                f"k={config.k}, temperature={config.temperature}: expected 1 or more neighbors and "
                "a positive temperature"
            )
        self._config = config
        self._sources = _open(config, embedder)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        train, test = self._sources
        features, fractions = _training_patches(train, params, self._config)
        keys, k = _normalize(features), min(self._config.k, len(features))

        def scores(rows: np.ndarray) -> np.ndarray:
            similarity, found = nearest(_normalize(rows), keys, k)
            relative = similarity.astype(np.float64) - similarity[:, :1]
            weights = np.exp(relative / self._config.temperature)
            weights /= weights.sum(axis=1, keepdims=True)
            return np.einsum("qk,qkc->qc", weights, fractions[found])

        yield from _metrics(test, params, scores)


def _open(config: DenseConfig, embedder: Embedder) -> tuple[DenseSource, DenseSource]:
    if config.patches < 0:
        raise UserError(f"patches={config.patches}: expected a number of patches, or 0 for all")
    train, test = (
        DenseSource(embedder, data, config.layer) for data in (config.train, config.test)
    )
    if train.class_names != test.class_names:
        raise UserError(
            f"{config.train} has {len(train.class_names)} classes, {config.test} "
            f"{len(test.class_names)}: expected the same names in the same order"
        )
    return train, test


def _training_patches(
    source: DenseSource, params: Params, config: DenseConfig
) -> tuple[Float32[np.ndarray, "patches dim"], Float32[np.ndarray, "patches classes"]]:
    """Features of patches that have a class, and the fractions of their classes."""
    rng, count = np.random.default_rng(config.seed), len(source)
    most = -(-config.patches // count) if config.patches else None
    features, fractions = [], []
    for found, labels in source.maps(params):
        shares = label_fractions(labels, found.shape[:2], len(source.class_names))
        rows = np.flatnonzero(shares.sum(axis=2) > 0)
        rows = np.sort(rng.permutation(rows)[:most])
        features.append(found.reshape(-1, found.shape[2])[rows])
        fractions.append(shares.reshape(-1, shares.shape[2])[rows])
    joined = np.concatenate(features)
    if not len(joined):
        raise UserError("no training patch has a class")
    return joined, np.concatenate(fractions)


def _metrics(
    source: DenseSource, params: Params, scores: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[str, float]]:
    num_classes = len(source.class_names)
    counts: Int[np.ndarray, "classes classes"] = np.zeros((num_classes, num_classes), np.int64)
    for features, labels in source.maps(params):
        rows, columns, dim = features.shape
        found = scores(features.reshape(-1, dim)).reshape(rows, columns, -1)
        predicted = predict_pixels(found, (labels.shape[0], labels.shape[1]))
        counts += mask_metrics.confusion(predicted.ravel(), labels.ravel(), num_classes)
    annotated = counts.sum(axis=1) > 0
    if not annotated.any():
        raise UserError("no test pixel has a class")
    yield "mIoU", float(np.mean(mask_metrics.class_iou(counts)[annotated]))
    yield "pixel_accuracy", float(np.trace(counts) / counts.sum())


def _normalize(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _EPSILON)
