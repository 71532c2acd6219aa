"""Images with one label per pixel, as ADE20K, Cityscapes and Pascal VOC store them."""

import dataclasses
import posixpath
from typing import Any

import numpy as np
from jaxtyping import Int32

from vit_jax.data.images import EncodedImage, read_levels
from vit_jax.data.masks import boxes_of
from vit_jax.data.sources import classes, files, listing
from vit_jax.data.sources.base import Source, check_index
from vit_jax.errors import UserError, printable


class Semantic(Source):
    """Images and label maps of the same names (`semantic:DIR?labels=DIR&classes=FILE`).

    A label map is a PNG of one channel and of the size of its image: the value of a pixel is the
    number of its class, and 255 means that nothing is said of it. `a/1.jpg` belongs to `a/1.png`.

    An example has, besides `image` and `key`:

    - `label_map`, int32 (H, W), the class of each pixel, -1 for pixels without one;
    - `names`, the classes that occur, `segmentation`, the pixels of each of them, bool (H, W), and
      `boxes`, float32 (n, 4), x0, y0, x1, y1 around them, px;
    - `ignored`, bool (H, W), the pixels without a class;
    - `vocabulary`, the names of all classes.

    Images without a label map, and label maps without an image, are left out and counted.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        """Options of the spec.

        Attributes:
            labels: folder of the label maps.
            classes: text file with the name of a class on every line, in the order of the values.
            first: value of the first class, as 1 for ADE20K; smaller values have no class.
            ignore: value of pixels without a class.
            suffix: what the names of label maps have more than those of images, as
                "_gtFine_labelTrainIds".
            image_suffix: what the names of images have more than those of label maps, as
                "_leftImg8bit".
        """

        labels: str
        classes: str
        first: int = 0
        ignore: int = 255
        suffix: str = ""
        image_suffix: str = ""

    def __init__(self, config: Config, place: str) -> None:
        """Lists the files.

        Args:
            config: options of the spec.
            place: folder of the images.

        Raises:
            UserError: a folder or the file of classes is absent, or no image has a label map.
        """
        self._config = config
        self.class_names: list[str] = classes.read_lines(config.classes)
        self._fs, root = files.file_system(place)
        self._label_fs, label_root = files.file_system(config.labels)
        left_out = listing.LeftOut()
        images = _by_name(self._fs, root, config.image_suffix, left_out)
        maps = _by_name(self._label_fs, label_root, config.suffix, left_out)
        for name in sorted(images.keys() ^ maps.keys()):
            kind = "images without a label map" if name in images else "label maps without an image"
            left_out.add(kind, name)
        names = sorted(images.keys() & maps.keys())
        if not names:
            raise UserError(
                f"no image of {place} has a label map of the same name in {config.labels}: found "
                f"{len(images)} images and {len(maps)} label maps"
            )
        left_out.log(place)
        self._pairs = [(images[name], maps[name]) for name in names]

    @property
    def labels(self) -> None:
        """None: an image has several classes."""
        return None

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        example, path = self.annotation(index), self._pairs[index][0]
        image = EncodedImage(files.read(self._fs, path), example["key"])
        height, width = example["label_map"].shape
        if image.shape != (height, width):
            raise UserError(
                f"{example['key']} has {image.shape[1]} x {image.shape[0]} px, its label map "
                f"{width} x {height} px"
            )
        return {"image": image, **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        image, path = self._pairs[check_index(index, len(self))]
        labels = self._read(path)
        shown = [int(label) for label in np.unique(labels) if label >= 0]
        masks = [labels == label for label in shown]
        return {
            "key": printable(image),
            "label_map": labels,
            "boxes": boxes_of(np.reshape(masks, (-1, *labels.shape)).astype(np.bool_)),
            "names": [self.class_names[label] for label in shown],
            "segmentation": masks,
            "ignored": labels < 0,
            "vocabulary": self.class_names,
        }

    def _read(self, path: str) -> Int32[np.ndarray, "height width"]:
        """Class of each pixel, -1 for none."""
        values = read_levels(EncodedImage(files.read(self._label_fs, path), printable(path)))
        labels = values - self._config.first
        labels[(labels < 0) | (values == self._config.ignore)] = -1
        if (largest := int(labels.max(initial=-1))) >= len(self.class_names):
            raise UserError(
                f"{printable(path)} has the value {largest + self._config.first}, but there "
                f"are {len(self.class_names)} classes from {self._config.first}: set first, "
                "ignore, or another file of classes"
            )
        return labels.astype(np.int32)


def _by_name(fs: Any, root: str, suffix: str, left_out: listing.LeftOut) -> dict[str, str]:
    """Paths of the files below a folder, by their names without suffix and extension."""
    found: dict[str, str] = {}
    paths, _, hidden = listing.find(fs, root)
    for reason, (count, name) in hidden.counts.items():
        left_out.add(reason, name, count)
    for path in paths:
        name = posixpath.splitext(listing.inside_of(root, path))[0]
        if not name.endswith(suffix):
            left_out.add("files of another name", path)
        elif found.setdefault(name.removesuffix(suffix), path) != path:
            left_out.add("files with the name of another one", path)
    return found
