"""MLflow."""

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.errors import MissingPackageError
from vit_jax.tracking.base import Tracker, saved_id

_ID_FILE = "mlflow_run_id"
_MAX_PARAMS = 100  # per request, a limit of the server
_MAX_VALUE = 6000  # characters of a parameter, a limit of the server


class MLflow(Tracker):
    """Records to an MLflow server. All starts of a run share a run there.

    Parameters are the flat config of the first start; artifacts hold that of the newest one, the
    newest start with its uncommitted changes, images and texts. Characters that MLflow does not
    allow in the name of a metric become "_".
    """

    remote: ClassVar[bool] = True
    joins: ClassVar[bool] = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the tracker.

        Attributes:
            uri: address of the server, as http://host:5000; "" for MLFLOW_TRACKING_URI.
            experiment: experiment of the run.
            run_name: name of the run; "" for the name of the workdir.
            close_seconds: time that the server has for what is waiting once training has ended.
        """

        uri: str = ""
        experiment: str = "vit_jax"
        run_name: str = ""
        close_seconds: float = 60.0

        def __post_init__(self) -> None:
            """Refuses a missing package before the run starts."""
            _mlflow()

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int | None):
        """Opens the run of the workdir, or a new one; records from beside leave its status.

        Raises:
            Exception: whatever MLflow raises where the server does not answer.
        """
        self._mlflow, self._config = _mlflow(), config
        self._client = self._mlflow.MlflowClient(config.uri or None)
        name, path = config.run_name or workdir.name, workdir / _ID_FILE
        self._run = saved_id(path, lambda: self._create(name))
        self._trains = first_step is not None
        try:
            if self._trains:
                self._client.update_run(self._run, status="RUNNING")
            else:
                self._client.get_run(self._run)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            path.unlink()  # of another server
            self._run = saved_id(path, lambda: self._create(name))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Records the config as an artifact, and for a new run as parameters."""
        self._client.log_dict(self._run, dict(config), "config.json")
        if self._client.get_run(self._run).data.params:
            return  # cannot be changed
        param = self._mlflow.entities.Param
        params = [param(key, value[:_MAX_VALUE]) for key, value in _flat(config)]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run, params=params[first : first + _MAX_PARAMS])

    def write_start(self, start: Mapping[str, Any], diff: str) -> None:
        """Records commit and command as tags, and the start and its changes as artifacts."""
        tag = self._mlflow.entities.RunTag
        tags = {
            "mlflow.source.name": start["command"],
            "mlflow.source.git.commit": start["commit"] or "",
            "uncommitted_changes": str(bool(diff)),
        }
        self._client.log_batch(self._run, tags=[tag(*each) for each in tags.items()])
        self._client.log_dict(self._run, dict(start), "provenance/start.json")
        if diff:
            self._client.log_text(self._run, diff, "provenance/uncommitted.diff")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records metrics of a step."""
        metric, now = self._mlflow.entities.Metric, int(time.time() * 1000)
        metrics = [metric(_allowed(name), value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def write_images(
        self, step: int, images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    ) -> None:
        """Records images of a step as artifacts, `images/<name>/<step>.png`."""
        for name, image in images.items():
            path = f"images/{_allowed(name)}/{step:08}.png"
            self._client.log_image(self._run, Image.fromarray(image), path)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Records texts of a step as artifacts, `texts/<name>/<step>.txt`."""
        for name, text in texts.items():
            self._client.log_text(self._run, text, f"texts/{_allowed(name)}/{step:08}.txt")

    def close(self) -> None:
        """Closes the run."""
        if self._trains:
            self._client.set_terminated(self._run)

    def _create(self, name: str) -> str:
        found = self._client.get_experiment_by_name(self._config.experiment)
        number = (
            found.experiment_id
            if found
            else self._client.create_experiment(self._config.experiment)
        )
        return self._client.create_run(number, run_name=name).info.run_id


def _mlflow() -> Any:
    """The package, which is imported where the tracker is used."""
    try:
        import mlflow
    except ImportError:
        raise MissingPackageError(
            "the tracker mlflow needs its package: pip install 'vit_jax[mlflow]'"
        ) from None
    return mlflow


def _allowed(name: str) -> str:
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Keys with dots and their values as JSON."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((_allowed(prefix + key), json.dumps(value)))
    return found
