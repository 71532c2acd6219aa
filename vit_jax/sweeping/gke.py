"""Variants as a JobSet of Kubernetes, one index of an Indexed Job per variant."""

import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from vit_jax.errors import UserError

MANIFEST = pathlib.Path(__file__).parents[2] / "launch" / "gke_jobset.yaml"

_INDEX = "$(JOB_COMPLETION_INDEX)"  # a variable of each pod of an Indexed Job
_RETRIES = 3  # restarts of a variant after a crash; a preemption does not count


def manifest(
    template: pathlib.Path, accelerator: str, name: str, count: int, arguments: Sequence[str]
) -> dict[str, Any]:
    """Builds the manifest of a sweep from that of a run. Each variant has one host.

    A pod with exit code 2 (an error that the user can fix) ends its variant, one with 75
    (preempted) is started again; neither touches the other variants.

    Args:
        template: `launch/gke_jobset.yaml`, with image, volumes and the hosts' node selector.
        accelerator: value of the label `accelerator` of the JobSet that is used.
        name: name of the JobSet.
        count: number of variants.
        arguments: arguments of `vit_jax.sweep` that choose the sweep.

    Raises:
        UserError: no such file, or no JobSet with this label in it.
    """
    if not template.is_file():
        raise UserError(
            f"no manifest {template}: give that of launch/gke_jobset.yaml with --template"
        )
    documents = [x for x in yaml.safe_load_all(template.read_text("utf-8")) if x]
    labels = [x["metadata"].get("labels", {}).get("accelerator") for x in documents]
    if accelerator not in labels:
        raise UserError(f"{template} has no JobSet with the label accelerator={accelerator}")
    jobset = documents[labels.index(accelerator)]
    jobset["metadata"] = {"name": name, "labels": {"accelerator": accelerator}}
    jobset["spec"].pop("network", None)
    jobset["spec"]["failurePolicy"] = {"maxRestarts": 0}
    (job,) = jobset["spec"]["replicatedJobs"]
    job["replicas"], spec = 1, job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    spec.pop("backoffLimit", None)
    spec |= {
        "completions": count,
        "parallelism": count,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": _RETRIES,
        "podFailurePolicy": {"rules": _rules(container["name"])},
    }
    container["command"] = ["python", "-m", "vit_jax.sweep"]
    container["args"] = [*arguments, f"--index={_INDEX}"]
    container.pop("env", None)  # how several hosts of a run find each other
    container.pop("ports", None)
    return jobset


def _rules(container: str) -> list[dict[str, Any]]:
    """Rules for failed pods, in the order in which they are tried."""
    codes = {"containerName": container, "operator": "In"}
    return [
        {"action": "FailIndex", "onExitCodes": {**codes, "values": [2]}},
        {"action": "Ignore", "onExitCodes": {**codes, "values": [75]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def to_yaml(jobset: dict[str, Any]) -> str:
    """The text of a manifest."""
    return yaml.safe_dump(jobset, sort_keys=False)


def apply(jobset: dict[str, Any]) -> None:
    """Submits a manifest with `kubectl`.

    Raises:
        UserError: there is no `kubectl`, or it refused the manifest.
    """
    try:
        subprocess.run(
            ["kubectl", "apply", "-f", "-"], input=to_yaml(jobset), text=True, check=True
        )
    except FileNotFoundError:
        raise UserError(
            "no kubectl on this machine: use --dry_run and apply it elsewhere"
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"kubectl ended with exit code {error.returncode}") from None
