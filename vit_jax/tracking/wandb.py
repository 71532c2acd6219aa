"""Weights & Biases."""

import dataclasses
import logging
import netrc
import os
import pathlib
import secrets
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8

from vit_jax.errors import MissingPackageError, UserError
from vit_jax.paths import as_local_path
from vit_jax.tracking.base import Tracker, saved_id

logger = logging.getLogger(__name__)

_ID_FILE = "wandb_run_id"
_STEP = "train_step"  # wandb drops values of a `step` that is not above the last one


class WeightsAndBiases(Tracker):
    """Records to `wandb/` of the workdir; in the mode "online" another process uploads it.

    Nothing waits for the server: the run itself is always an offline run, and `wandb sync` repeats
    an upload that did not complete. All starts of a run share an id.
    """

    joins: ClassVar[bool] = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the tracker.

        Attributes:
            project: project of the run.
            entity: user or team; "" for the default of the API key.
            run_name: name of the run; "" for the name of the workdir.
            group: group of runs, as the name of an ablation; "" for none.
            tags: tags of the run.
            mode: "online" or "offline". Online needs an API key, from `wandb login` or
                WANDB_API_KEY.
            close_seconds: time that the upload has once training has ended.
        """

        project: str = "vit_jax"
        entity: str = ""
        run_name: str = ""
        group: str = ""
        tags: tuple[str, ...] = ()
        mode: Literal["online", "offline"] = "online"
        close_seconds: float = 60.0

        def __post_init__(self) -> None:
            """Refuses a missing package or API key before the run starts."""
            _wandb()
            if self.mode == "online" and not _has_key():
                raise UserError(
                    "the tracker wandb has no API key: run `wandb login`, set WANDB_API_KEY, or "
                    "set its mode='offline'"
                )

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int | None):
        """Opens an offline run, and starts its upload."""
        self._wandb, self._close_seconds = _wandb(), config.close_seconds
        self._run = self._wandb.init(
            mode="offline",
            dir=workdir,
            id=saved_id(workdir / _ID_FILE, lambda: secrets.token_hex(4)),
            project=config.project,
            entity=config.entity or None,
            name=config.run_name or workdir.name,
            group=config.group or None,
            tags=config.tags,
            # `write_start` records the commit, for all trackers in the same way.
            settings=self._wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True
            ),
        )
        self._run.define_metric("*", step_metric=_STEP)
        self._folder = as_local_path(self._run.settings.sync_dir, "wandb writes here").absolute()
        self._upload = self._start_upload() if config.mode == "online" else None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Records the config of the run."""
        self._run.config.update(config, allow_val_change=True)

    def write_start(self, start: Mapping[str, Any], diff: str) -> None:
        """Records the start as the config key `provenance`, and the changes as a file."""
        self._run.config.update({"provenance": start}, allow_val_change=True)
        if diff:
            folder = self._folder / "files"
            (folder / "uncommitted.diff").write_text(diff, encoding="utf-8")
            self._run.save(str(folder / "uncommitted.diff"), base_path=str(folder), policy="now")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records metrics of a step."""
        self._run.log({_STEP: step, **scalars})

    def write_images(
        self, step: int, images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    ) -> None:
        """Records images of a step."""
        self._run.log({_STEP: step, **{name: self._wandb.Image(x) for name, x in images.items()}})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Records texts of a step, each as a table of its lines."""
        tables = {
            name: self._wandb.Table(columns=["text"], data=[[line] for line in text.splitlines()])
            for name, text in texts.items()
        }
        self._run.log({_STEP: step, **tables})

    def close(self) -> None:
        """Closes the run, and waits a limited time for its upload."""
        self._run.finish()
        if self._upload is None:
            return
        try:
            complete = self._upload.wait(self._close_seconds) == 0
        except subprocess.TimeoutExpired:
            self._upload.kill()
            complete = False
        if not complete:
            logger.warning(
                "Tracker wandb: the upload is not complete, see %s. This repeats it:\n"
                "  wandb sync %s",
                self._log,
                self._folder,
            )

    @property
    def _log(self) -> pathlib.Path:
        return self._folder / "logs" / "upload.log"

    def _start_upload(self) -> subprocess.Popen:
        command = ["wandb", "beta", "sync", "--live", "--yes", str(self._folder)]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**os.environ, "WANDB_SILENT": "false"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,  # where it writes a log of its own
                start_new_session=True,  # Ctrl-C saves the run first
            )


def _wandb() -> Any:
    """The package, which is imported where the tracker is used."""
    try:
        import wandb
    except ImportError:
        raise MissingPackageError(
            "the tracker wandb needs its package: pip install 'vit_jax[wandb]'"
        ) from None
    return wandb


def _has_key() -> bool:
    """Whether there is an API key. `wandb.login` asks the server, which may be down."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
