"""Files of trackers for a workdir in a bucket, whose objects cannot be appended to."""

import pathlib
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor

from vit_jax.atomic_files import atomic_write
from vit_jax.paths import StrPath, as_path, download

_INTERVAL = 30.0  # seconds between uploads, except before a checkpoint


class Mirror:
    """A local folder that starts with the files of a workdir, and is uploaded as it changes.

    Attributes:
        folder: the local folder.
    """

    def __init__(self, workdir: StrPath):
        """Downloads the files of a workdir, without its folders.

        Args:
            workdir: gs:// URL of the folder of the run.

        Raises:
            UserError: a file cannot be read.
        """
        self._workdir = as_path(workdir)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vit_jax_trackers_"))
        for source in self._workdir.iterdir():
            if not source.is_dir():
                download(source, self.folder / source.name)
        self._uploaded = self._versions()
        self._thread = ThreadPoolExecutor(1, "mirror")
        self._upload: Future[None] | None = None
        self._due = time.monotonic() + _INTERVAL

    def upload_when_due(self) -> None:
        """Starts an upload if the last one is some time ago.

        Raises:
            UserError: the last upload has failed.
        """
        if time.monotonic() < self._due or (self._upload and not self._upload.done()):
            return
        self._due = time.monotonic() + _INTERVAL
        if self._upload is not None:
            self._upload.result()
        self._upload = self._thread.submit(self._upload_changes)

    def upload(self) -> None:
        """Returns once everything is uploaded.

        Raises:
            UserError: an upload has failed.
        """
        self._thread.submit(self._upload_changes).result()

    def close(self) -> None:
        """Uploads the last changes and removes the local folder."""
        try:
            self.upload()
        finally:
            self._thread.shutdown()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _versions(self) -> dict[str, tuple[int, int]]:
        """Size and time of change by file name."""
        files = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*")}
        stats = {name: path.stat() for name, path in files.items() if path.is_file()}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    def _upload_changes(self) -> None:
        for name, version in self._versions().items():
            if self._uploaded.get(name) == version:
                continue
            # A copy does not grow while it is uploaded.
            with atomic_write(self._workdir / name) as copy:
                shutil.copyfile(self.folder / name, copy)
            self._uploaded[name] = version
