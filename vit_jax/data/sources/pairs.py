"""A folder of images with captions: text files beside them, or the words of their file names."""

import dataclasses
import posixpath
import re
from typing import Any, Literal

from vit_jax.data.sources import files, listing
from vit_jax.data.sources.base import check_captions, decode_text
from vit_jax.data.sources.folder import is_image
from vit_jax.data.sources.images import Images
from vit_jax.errors import UserError, printable

_TEXT = ".txt"
_CAPTIONS = {"text": "a text beside it", "file_name": "a word in its name"}
_SEPARATORS = re.compile(r"[\W_]+")


class ImagePairs(Images):
    """Images of a folder and of all folders below it. An example has `image`, `captions`, `key`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Images.Config):
        """Options of the spec.

        Attributes:
            captions: "text": the lines of the file of the same name with the suffix .txt, one
                caption per line; "file_name": the words of the file name, without numbers.
        """

        captions: Literal["text", "file_name"] = "text"

    _config: Config

    def _choose(self, paths: list[str], left_out: listing.LeftOut) -> list[str]:
        """See `Images`."""
        kind = self._config.captions
        texts = {_stem(path) for path in paths if path.endswith(_TEXT)}
        images = [path for path in paths if is_image(path)]
        chosen = []
        for path in images:
            if _stem(path) in texts if kind == "text" else words(path):
                chosen.append(path)
            else:
                left_out.add(f"without {_CAPTIONS[kind]}", path)
        if not chosen:
            raise UserError(
                f"{self._place} has {len(images)} images, none with {_CAPTIONS[kind]}: "
                f"captions are read from {_TEXT} files, or from file names, ?captions=file_name"
            )
        return chosen

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        example = super().annotation(index)
        return {"captions": self._captions(self._paths[index]), **example}

    def _captions(self, path: str) -> list[str]:
        if self._config.captions == "file_name":
            return [words(path)]
        text = _stem(path) + _TEXT
        lines = decode_text(files.read(self._fs, text), text).split("\n")
        return check_captions([line.strip() for line in lines], text)


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
