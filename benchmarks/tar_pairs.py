"""Image-text pairs in tar shards, as img2dataset writes them."""

import io
import tarfile


def add_pair(tar: tarfile.TarFile, key: str, jpeg: bytes, caption: bytes) -> None:
    """Adds KEY.jpg and KEY.txt to an archive.

    Args:
        tar: archive opened for writing.
        key: name without suffix.
        jpeg: encoded image.
        caption: text, UTF-8.
    """
    for suffix, data in (("jpg", jpeg), ("txt", caption)):
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
