"""A folder of images with captions: text files beside them, or the words of their file names."""

import dataclasses
import os
import posixpath
import re
from typing import Any, Literal

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files, listing
from vit_jax.data.sources.base import Source, check_captions, check_index, decode_text
from vit_jax.data.sources.folder import is_image
from vit_jax.errors import UserError, printable

_TEXT = ".txt"
_CAPTIONS = {"text": "a text beside it", "file_name": "a word in its name"}
_SEPARATORS = re.compile(r"[\W_]+")


class ImagePairs(Source):
    """Images of a folder and of all folders below it. An example has `image`, `captions`, `key`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            captions: "text": the lines of the file of the same name with the suffix .txt, one
                caption per line; "file_name": the words of the file name, without numbers.
        """

        captions: Literal["text", "file_name"] = "text"

    def __init__(self, config: Config, place: str | os.PathLike[str]) -> None:
        """Lists the images.

        Args:
            config: options of the spec.
            place: path or URL of the folder.

        Raises:
            UserError: no such folder, or no image with a caption.
        """
        self._config, self._place = config, os.fspath(place)
        self._fs, root = listing.open_folder(self._place)
        paths, _, left_out = listing.find(self._fs, root)
        texts = {_stem(path) for path in paths if path.endswith(_TEXT)}
        images = [path for path in paths if is_image(path)]
        self._paths = []
        for path in images:
            if _stem(path) in texts if config.captions == "text" else words(path):
                self._paths.append(path)
            else:
                left_out.add(f"without {_CAPTIONS[config.captions]}", path)
        if not self._paths:
            raise UserError(
                f"{place} has {len(images)} images, none with {_CAPTIONS[config.captions]}: "
                f"captions are read from {_TEXT} files, or from file names, ?captions=file_name"
            )
        left_out.log(self._place)

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        example = self.annotation(index)
        data = files.read(self._fs, self._paths[index])
        return {"image": EncodedImage(data, example["key"]), **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        path = self._paths[check_index(index, len(self))]
        return {"captions": self._captions(path), "key": printable(path)}

    def _captions(self, path: str) -> list[str]:
        if self._config.captions == "file_name":
            return [words(path)]
        text = _stem(path) + _TEXT
        lines = decode_text(files.read(self._fs, text), text).split("\n")
        return check_captions([line.strip() for line in lines], text)

    def __reduce__(self) -> tuple:
        """Pickles the spec."""
        return ImagePairs, (self._config, self._place)


def words(path: str) -> str:
    """Words of a file name, separated by spaces; "" where there are none.

    Args:
        path: path of a file: "a/red_car-02.png" has the words "red car".
    """
    name = posixpath.basename(_stem(path))
    found = _SEPARATORS.sub(" ", name).split()
    return printable(" ".join(word for word in found if any(map(str.isalpha, word))))


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]
