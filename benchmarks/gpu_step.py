"""Training steps on one GPU, here and in PyTorch with timm and open_clip, in turn.

    python -m benchmarks.gpu_step [--models vit_b16,clip_vit_b16,siglip_b16] [--batch_size 256]
    python -m benchmarks.gpu_step --notorch --attention cudnn

bfloat16, AdamW, random batches. Prints images per second, the fraction of the GPU's peak that the
model FLOPs reach, and the peak memory. Each side runs in a process of its own, so that no memory is
shared; the PyTorch side is `benchmarks/torch_step.py`, which needs the extra [parity]. On other
devices the command runs as well, without the fraction of the peak.
"""

import json
import statistics
import subprocess
import sys
from typing import Any

from absl import flags

from vit_jax import cli

# Dense bfloat16 FLOP/s, from the data sheets. The first name that the device's name contains.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "vit_b16": {"name": "classification"},
    "clip_vit_b16": {"name": "contrastive"},
    "siglip_b16": {"name": "contrastive", "loss": "sigmoid"},
}

_MODELS = flags.DEFINE_list("models", list(OBJECTIVES), "Models to time.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images per step.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Number of timed steps.", lower_bound=1)
_ATTENTION = flags.DEFINE_string("attention", "auto", "Value of config.compute.attention.")
_REMAT = flags.DEFINE_string("remat", "none", "Value of config.compute.remat.")
_TORCH = flags.DEFINE_bool("torch", True, "Time PyTorch as well.")
_ONE = flags.DEFINE_bool("one", False, "Time one model in this process and print JSON.")


def time_model(name: str) -> dict[str, Any]:
    """Times the training step of a model in this process.

    Args:
        name: key of `OBJECTIVES`.

    Returns:
        "seconds", the median of a step; "flops" of the model per step; "peak_bytes", None where the
        device does not count them; "device".
    """
    import jax

    from benchmarks.timed_step import TimedStep
    from vit_jax.config import default_config
    from vit_jax.experiment import build
    from vit_jax.flops import traced_flops
    from vit_jax.planning.compilation import trace_step, without_recomputation

    config = default_config(model=name)
    config.objective.update(OBJECTIVES[name])
    if OBJECTIVES[name]["name"] == "classification":
        config.model.num_classes = 1000
    config.batch_size, config.total_steps = _BATCH.value, 1000
    config.optim.update(lr=1e-4, weight_decay=0.1)
    config.compute.update(
        dtype="bfloat16", scan=False, remat=_REMAT.value, attention=_ATTENTION.value
    )
    flops = traced_flops(trace_step(build(without_recomputation(config), data=False)).jaxpr)
    step = TimedStep(config)
    for _ in range(3):
        step()
    seconds = statistics.median(step() for _ in range(_STEPS.value))
    device = jax.devices()[0]
    return {
        "seconds": seconds,
        "flops": flops,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "device": device.device_kind,
    }


def main() -> None:
    """Prints a row per model and side."""
    if _ONE.value:
        print(json.dumps(time_model(_MODELS.value[0])))
        return
    columns = ("images/s", "of peak", "GiB")
    print(f"{'model':<14} {'side':<8}" + "".join(f"{column:>10}" for column in columns))
    for name in _MODELS.value:
        execution = (f"--attention={_ATTENTION.value}", f"--remat={_REMAT.value}")
        ours = _run("benchmarks.gpu_step", name, "--one", *execution)
        flops = ours["flops"]
        print(_row(name, "vit_jax", ours, flops), flush=True)
        if _TORCH.value:
            theirs = _run("benchmarks.torch_step", name)
            print(_row(name, "PyTorch", theirs, flops))
            print(
                f"{name:<14} {'ratio':<8}{theirs['seconds'] / ours['seconds']:>10.2f}", flush=True
            )


def _run(module: str, name: str, *more: str) -> dict[str, Any]:
    """The result of one side, from a process of its own."""
    command = [sys.executable, "-m", module, f"--models={name}", f"--batch_size={_BATCH.value}"]
    command += [f"--steps={_STEPS.value}", *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _row(name: str, side: str, result: dict[str, Any], flops: float) -> str:
    peak = next((peak for gpu, peak in PEAKS.items() if gpu in result["device"]), None)
    fraction = f"{flops / result['seconds'] / peak:.1%}" if peak else "unknown"
    memory = f"{result['peak_bytes'] / 2**30:.2f}" if result["peak_bytes"] else "unknown"
    speed = _BATCH.value / result["seconds"]
    return f"{name:<14} {side:<8}{speed:>10.1f}{fraction:>10}{memory:>10}"


if __name__ == "__main__":
    cli.run(main)
