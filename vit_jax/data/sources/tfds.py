"""Data sets of TensorFlow Datasets, prepared as ArrayRecord or TFRecord, without TensorFlow."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources.base import Source, check_captions, label_fields
from vit_jax.data.sources.tfrecord import TfRecords
from vit_jax.errors import UserError, check_name, unknown
from vit_jax.paths import as_local_path, is_url

_CAPTION_NAMES = ("captions", "caption", "text", "title")


_LOCAL = "data sets of TFDS are read from local disks"


class TfdsSource(Source):
    """A split of a prepared data set; images stay encoded until they are needed."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            data_dir: folder of prepared data sets; by default TFDS_DATA_DIR or
                ~/tensorflow_datasets.
            image: feature of the image; by default `image`, or the only `Image` feature.
            caption: feature of the captions, a text or a list of texts; by default the first of
                captions, caption, text, title.
            label: feature of the class; by default `label`, if it is a `ClassLabel`, or the only
                `ClassLabel`.
        """

        data_dir: str | None = None
        image: str | None = None
        caption: str | None = None
        label: str | None = None

    def __init__(self, config: Config, place: str) -> None:
        """Opens a split.

        Args:
            config: options of the spec.
            place: NAME:SPLIT. The name is NAME, NAME/CONFIG or NAME/CONFIG:VERSION as in TFDS, or
                the folder of one prepared version.

        Raises:
            UserError: no such data set or split, a data set that is not prepared or prepared in
                another format, no image.
            MissingPackageError: the data set is TFRecord, and google-crc32c is not installed.
        """
        import tensorflow_datasets as tfds

        name, colon, split = place.rpartition(":")
        if not colon:
            raise UserError(f"tfds:{place} has no split: expected tfds:NAME:SPLIT")
        self._config, self._place = config, place
        builder = _builder(name, config.data_dir)
        if split not in builder.info.splits:
            raise unknown(split, builder.info.splits, f"split of {name}")
        features = builder.info.features
        image = _find(features, config.image, ("image",), "image", _only(tfds.features.Image))
        if image is None:
            raise UserError(f"{name} has no image among its features {sorted(features)}")
        self._image = image
        is_class = _only(tfds.features.ClassLabel)
        usual = ("label",) if is_class(dict(features).get("label")) else ()
        self._label = _find(features, config.label, usual, "label", is_class)
        self._caption = _find(
            features, config.caption, _CAPTION_NAMES, "caption", lambda feature: False
        )
        if self._label is not None:
            self.class_names = _class_names(features[self._label], name, self._label)
        decoders = {self._image: tfds.decode.SkipDecoding()}
        self._records: Any
        try:
            if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
                self._records = _TfRecordExamples(builder.info, split, decoders)
            else:
                self._records = builder.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:
            raise UserError(
                f"{name} is prepared as {builder.info.file_format.value}, expected array_record or "
                "tfrecord: prepare it with `tfds build --file_format=array_record`"
            ) from error

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """See `Source`."""
        if self._label is None:
            return None
        return np.array([record[self._label] for record in self._records], np.int64)

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        record, where = self._read(index)
        return {
            "image": EncodedImage(record[self._image], where),
            **self._annotation(record, where),
        }

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        return self._annotation(*self._read(index))

    def _read(self, index: int) -> tuple[dict[str, Any], str]:
        where = f"{self._place}, example {index}"
        try:
            return self._records[index], where
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"cannot read {where}: {error}") from error

    def _annotation(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        example: dict[str, Any] = {"key": where}
        if self._label is not None and record[self._label] >= 0:  # -1 in splits without labels
            example |= label_fields(record[self._label], self.class_names, where)
        if self._caption is not None:
            example["captions"] = check_captions(record[self._caption], where)
        return example

    def __reduce__(self) -> tuple:
        """Pickles the spec."""
        return TfdsSource, (self._config, self._place)


class _TfRecordExamples:
    """Decoded examples of TFRecord files, as TFDS serves those of ArrayRecord."""

    def __init__(self, info: Any, split: str, decoders: dict[str, Any]) -> None:
        self._features, self._decoders = info.features, decoders
        self._records = TfRecords([os.fspath(path) for path in info.splits[split].filepaths])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._features.deserialize_example_np(self._records[index], decoders=self._decoders)


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        if name.startswith(("/", "~", ".")) or is_url(name):
            return tfds.builder_from_directory(as_local_path(name, _LOCAL))
        if folder := data_dir or os.environ.get("TFDS_DATA_DIR"):
            data_dir = str(as_local_path(folder, _LOCAL))
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except UserError:
        raise
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError, ImportError) as error:
        raise UserError(f"no TFDS data set {name!r}: {str(error).splitlines()[0]}") from error
    if not builder.data_path.exists():
        raise UserError(
            f"{name} is not prepared in {builder.data_path}: run `tfds build {name} "
            "--file_format=array_record` once, or give ?data_dir=DIR or TFDS_DATA_DIR"
        )
    return builder


def _class_names(feature: Any, name: str, label: str) -> list[str]:
    if not hasattr(feature, "names"):
        raise UserError(f"the feature {label!r} of {name} is not a ClassLabel with names")
    return list(feature.names)


def _only(kind: type) -> Callable[[Any], bool]:
    return lambda feature: isinstance(feature, kind)


def _find(
    features: Any,
    given: str | None,
    names: tuple[str, ...],
    role: str,
    is_kind: Callable[[Any], bool],
) -> str | None:
    """The given feature, the first one with a usual name, or the only one of a kind."""
    if given is not None:
        check_name(given, features, f"feature for {role}")
        return given
    if usual := [name for name in names if name in features]:
        return usual[0]
    fitting = [name for name, feature in features.items() if is_kind(feature)]
    return fitting[0] if len(fitting) == 1 else None
