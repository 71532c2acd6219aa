"""A folder of images without captions or classes."""

import os
from typing import Any

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files, listing
from vit_jax.data.sources.base import Source, check_index
from vit_jax.data.sources.folder import SUFFIXES, is_image
from vit_jax.errors import UserError, printable


class Images(Source):
    """Images of a folder and of all folders below it. An example has `image` and `key`."""

    def __init__(self, config: Source.Config, place: str | os.PathLike[str]) -> None:
        """Lists the images.

        Args:
            config: options of the spec.
            place: path or URL of the folder.

        Raises:
            UserError: no such folder, or no image of the kind that the source reads.
        """
        self._config, self._place = config, os.fspath(place)
        self._fs, root = listing.open_folder(self._place)
        paths, _, left_out = listing.find(self._fs, root)
        self._paths = self._choose(paths, left_out)
        left_out.log(self._place)

    def _choose(self, paths: list[str], left_out: listing.LeftOut) -> list[str]:
        """Paths of the images that are examples."""
        images = [path for path in paths if is_image(path)]
        if not images:
            raise UserError(
                f"no images in {self._place}: expected {' '.join(sorted(SUFFIXES))} files"
            )
        return images

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
        return {"key": printable(self._paths[check_index(index, len(self))])}

    def __reduce__(self) -> tuple:
        """Pickles the spec."""
        return type(self), (self._config, self._place)
