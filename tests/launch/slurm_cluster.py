"""A Slurm cluster with one controller and two nodes on the loopback device.

It runs Debian's packages:

apt-get install --no-install-recommends slurm-wlm munge
"""

import contextlib
import os
import pathlib
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "srun")
_PATH = f"{os.environ['PATH']}:/usr/sbin"


def missing_requirement() -> str | None:
    """Reason why no cluster can be started; None where one can."""
    if os.getuid():
        return "slurmd runs as root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)" * bool(missing)


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Starts a cluster and yields the environment variables of Slurm's commands.

    The nodes have addresses of the loopback device, 127.0.0.1 and 127.0.0.2, as names. These
    resolve without an entry in /etc/hosts, and JAX uses one as the address of its coordinator.

    Args:
        folder: folder for configuration, state and logs.
    """
    environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    (folder / "slurm.conf").write_text(_configuration(folder))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    own = [f"--{what}={folder}/munge.{what[:-5]}" for what in ("pid-file", "log-file", "seed-file")]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *own,
         f"--socket={folder}/munge.socket"],
        ["slurmctld", "-D", "-i"],
        *(["slurmd", "-D", "-N", f"127.0.0.{node}"] for node in (1, 2)),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.log").open("a"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: _idle(environment) == 2, folder)
        yield environment


def _idle(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%t"]
    states = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    return states.stdout.split().count("idle")


def _wait(done: Callable[[], bool], folder: pathlib.Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
            raise TimeoutError(f"Slurm did not start:\n{logs}")
        time.sleep(0.2)


def _configuration(folder: pathlib.Path) -> str:
    ports = [_free_port() for _ in range(3)]
    return f"""\
ClusterName=vit_jax_test
SlurmctldHost={platform.node()}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
NodeName=127.0.0.1 NodeHostname={platform.node()} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=127.0.0.2 NodeHostname={platform.node()} NodeAddr=127.0.0.2 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
