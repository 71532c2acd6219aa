"""Images with annotations in JSON lines: what the sources of such files share."""

import abc
import collections
import dataclasses
import logging
import posixpath
from collections.abc import Sequence
from typing import Any

from vit_jax.data.sources import files, table_files
from vit_jax.data.sources.base import Rows, Source, brief, check_index
from vit_jax.data.sources.boxes import ImageFiles
from vit_jax.errors import UserError, printable

logger = logging.getLogger(__name__)


class AnnotatedLines(Source):
    """Source of a file whose lines are objects with the path of an image, `image`.

    Lines that cannot be used are broken examples, counted when the file is opened.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        """Options of the spec.

        Attributes:
            images: folder of the images; by default that of the file.
        """

        images: str = ""

    def __init__(self, config: Config, place: str) -> None:
        """Reads the file and lists the images.

        Args:
            config: options of the spec.
            place: path or URL of the file.

        Raises:
            UserError: the file has no lines, no line can be used, or no image exists.
        """
        self._place = place
        fs, path = files.file_system(place)
        rows = [self._parse(line) for line in table_files.open_json_lines(fs, path).rows((), "")]
        _log_broken([row.get("broken") for row in rows], place)
        self._folder = config.images or posixpath.dirname(place) or "."
        self._files = ImageFiles(self._folder, place)
        self._files.locate([(row["image"],) for row in rows if "image" in row])
        self._rows = Rows(rows)

    @staticmethod
    @abc.abstractmethod
    def parse_line(line: dict[str, Any]) -> dict[str, Any]:
        """Checks a line.

        Args:
            line: object of the file.

        Returns:
            What is kept of it, JSON values, with `image`.

        Raises:
            UserError: the line cannot be used.
        """

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._rows)

    def _row(self, index: int) -> dict[str, Any]:
        """A line as `parse_line` returned it; raises the reason why it is broken."""
        index = check_index(index, len(self))
        row = self._rows[index]
        if "broken" in row:
            raise UserError(printable(f"{self._place}, line {index + 1}: {row['broken']}"))
        return row

    def _parse(self, line: table_files.Row) -> dict[str, Any]:
        """A line as it is stored, or the reason why it is broken."""
        if isinstance(line, str):
            return {"broken": line}
        try:
            return self.parse_line(line)
        except UserError as error:
            return {"broken": str(error)}


def image_path(line: dict[str, Any]) -> str:
    """The path of the image of a line.

    Args:
        line: object of a file.

    Raises:
        UserError: there is none.
    """
    image = line.get("image")
    if not isinstance(image, str) or not image.strip():
        raise UserError(f"image is {brief(image)}, expected a path")
    return image.strip()


def _log_broken(reasons: Sequence[str | None], place: str) -> None:
    """Logs how many lines are broken, by reasons of which those of others are None."""
    counts = collections.Counter(reason for reason in reasons if reason is not None)
    if counts.total() == len(reasons):
        reason = f", as {next(iter(counts))}" if counts else ""
        raise UserError(printable(f"{place} has no line that can be used{reason}"))
    for reason, count in counts.most_common(1):
        logger.warning(
            "%s: %d of %d lines are broken, %d of them: %s",
            place, counts.total(), len(reasons), count, printable(reason),
        )  # fmt: skip
