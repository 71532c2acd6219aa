"""Data sets of TensorFlow Datasets, prepared as ArrayRecord, without TensorFlow."""

import functools
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources.base import check_caption, decode_text, labelled
from vit_jax.errors import UserError, check_name, unknown

_CAPTION_NAMES = ("captions", "caption", "text", "title")


class TfdsSource:
    """A split of a prepared set; images stay encoded until they are needed.

    The image is the set's only image feature or the one called `image`; classes are the
    `ClassLabel` called `label`, or the only one; captions are a text, or a list of texts, called
    one of captions, caption, text, title.
    """

    def __init__(self, name: str, split: str, data_dir: str | None = None, **fields: str) -> None:
        """Opens a split.

        Args:
          name: NAME, NAME/CONFIG or NAME/CONFIG:VERSION, or the folder of one prepared version.
          split: as train; a part is cut by `open_source`.
          data_dir: where sets are prepared; by default TFDS_DATA_DIR or ~/tensorflow_datasets.
          **fields: the features to read as `image`, `label` and `caption`, where the rules above
            do not find them.

        Raises:
          UserError: no such set or split, not prepared, prepared in another format, no image.
        """
        import tensorflow_datasets as tfds

        self._spec = (name, split, data_dir, fields)
        builder = _builder(name, data_dir)
        if split not in builder.info.splits:
            raise unknown(split, builder.info.splits, f"split of {name}")
        features = builder.info.features
        self._image = _find(
            features, fields.get("image"), ("image",), "image", _only(tfds.features.Image)
        )
        if self._image is None:
            raise UserError(f"{name} has no image among its features {sorted(features)}")
        is_class = _only(tfds.features.ClassLabel)
        usual = ("label",) if is_class(dict(features).get("label")) else ()
        self._label = _find(features, fields.get("label"), usual, "label", is_class)
        self._caption = _find(
            features, fields.get("caption"), _CAPTION_NAMES, "caption", lambda feature: False
        )
        self.class_names: list[str] | None = None
        if self._label is not None:
            self.class_names = _class_names(features[self._label], name, self._label)
        try:
            self._records = builder.as_data_source(
                split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError as error:
            raise UserError(
                f"{name} is prepared as {builder.info.file_format.value}, expected array_record: "
                "prepare it with `tfds build --file_format=array_record`"
            ) from error

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        if self._label is None:
            return None
        return np.array([record[self._label] for record in self._records], np.int64)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        where = f"{self._spec[0]}:{self._spec[1]}, example {index}"
        return {
            "image": EncodedImage(record[self._image], where),
            **self._annotation(record, where),
        }

    def annotation(self, index: int) -> dict[str, Any]:
        where = f"{self._spec[0]}:{self._spec[1]}, example {index}"
        return self._annotation(self._records[index], where)

    def _annotation(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        example: dict[str, Any] = {"key": where}
        if self._label is not None and record[self._label] >= 0:  # -1 in splits without labels
            example |= labelled(record[self._label], self.class_names, where)
        if self._caption is not None:
            found = record[self._caption]
            texts = [found] if isinstance(found, bytes | str) else list(found)
            example["captions"] = [
                decode_text(text, where) if isinstance(text, bytes) else check_caption(text, where)
                for text in texts
            ]
        return example

    def __reduce__(self) -> tuple:
        return _opened, self._spec


def _opened(name: str, split: str, data_dir: str | None, fields: dict[str, str]) -> TfdsSource:
    return TfdsSource(name, split, data_dir, **fields)


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        if name.startswith(("/", "~", ".")) or "://" in name:
            return tfds.builder_from_directory(name)
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError, ImportError) as error:
        raise UserError(f"no TFDS set {name!r}: {str(error).splitlines()[0]}") from error
    if not builder.data_path.exists():
        raise UserError(
            f"{name} is not prepared in {builder.data_path}: run `tfds build {name} "
            "--file_format=array_record` once, or give ?data_dir=DIR or TFDS_DATA_DIR"
        )
    return builder


def _class_names(feature: Any, name: str, label: str) -> list[str]:
    if not hasattr(feature, "names"):
        raise UserError(f"the feature {label!r} of {name} is no ClassLabel: it names no classes")
    return list(feature.names)


def _only(kind: type) -> Any:
    return lambda feature: isinstance(feature, kind)


def _find(
    features: Any, asked: str | None, names: tuple[str, ...], role: str, is_kind: Any
) -> str | None:
    """The feature of a role: the one asked for, one of usual names, or the only one of a kind."""
    if asked is not None:
        check_name(asked, features, f"feature for {role}")
        return asked
    if usual := [name for name in names if name in features]:
        return usual[0]
    fitting = [name for name, feature in features.items() if is_kind(feature)]
    return fitting[0] if len(fitting) == 1 else None
