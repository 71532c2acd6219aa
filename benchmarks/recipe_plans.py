"""Plans the published recipes for TPU slices, and compares them with the committed table.

    python -m benchmarks.recipe_plans [--only NAME] [--write]

Prints the estimated time and memory of a training step of each recipe, and their ratio to
`benchmarks/recipe_plans.json`; `--write` replaces the table. Each recipe is compiled for minutes.
Needs libtpu (`pip install 'vit_jax[plan]'`) and no TPU. docs/plan.md explains the estimates.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags

from vit_jax import cli
from vit_jax.planning.units import GIB

TABLE = pathlib.Path(__file__).with_suffix(".json")

# Name -> recipe, slice, and further flags: 128 images per chip; of detectors 8, 4 and 1.
PLANS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "siglip_b16": (
        "siglip_b16",
        "v5e:2x2",
        ("config.batch_size=512", "config.mesh.fsdp=1", "config.compute.remat=none"),
    ),
    "siglip_b16_scanned": (
        "siglip_b16",
        "v5e:2x2",
        (
            "config.batch_size=512",
            "config.mesh.fsdp=1",
            "config.compute.scan=True",
            "config.compute.remat=full",
        ),
    ),
    "clip_vit_b16": ("clip_vit_b16", "v5e:16x16", ()),
    "vit_b16_augreg": ("vit_b16_augreg", "v5e:4x8", ()),
    "mae_vit_b16": ("mae_vit_b16", "v5e:4x8", ()),
    "cappa_b16": ("cappa_b16", "v5e:8x8", ()),
    "coca_b32": ("coca_b32", "v5e:16x16", ()),
    "siglip2_b16": ("siglip2_b16", "v5e:16x16", ()),
    "siglip2_b16_pairs": ("siglip2_b16", "v5e:16x16", ("stage=pairs",)),
    "naflex_b16": ("naflex_b16", "v5e:16x16", ()),
    "clipa_l16": ("clipa_l16", "v5e:16x16", ()),
    "clipa_l16_small": ("clipa_l16", "v5e:16x16", ("stage=small",)),
    "dinov2_vits14": ("dinov2_vits14", "v5e:8x8", ()),
    "dinov2_vitl14": ("dinov2_vitl14", "v5e:16x16", ()),
    "swin_t": ("swin_t", "v5e:2x4", ()),
    "owlvit_b32": ("owlvit_b32", "v5e:4x8", ()),
    "owlv2_b16": ("owlv2_b16", "v5e:8x8", ()),
    "grounding_dino_tiny": ("grounding_dino_tiny", "v5e:4x8", ()),
}

_ONLY = flags.DEFINE_enum("only", None, sorted(PLANS), "Plan one recipe.")
_WRITE = flags.DEFINE_bool("write", False, "Replace the committed table.")


def make_plan(name: str) -> dict[str, Any]:
    """Plans a recipe in a process of its own.

    Args:
        name: key of `PLANS`.

    Returns:
        "ms", the estimated time of a step; "gib", the peak memory of a chip; "fraction_of_peak";
        "groups", the time per kind of operation, ms; "unestimated" operations by name.

    Raises:
        subprocess.CalledProcessError: the plan failed.
    """
    recipe, topology, further = PLANS[name]
    command = [sys.executable, "-m", "vit_jax.plan", "--config", f"configs/{recipe}.py"]
    command += [f"--topology={topology}", "--json"]
    command += [f"--{flag}" for flag in further]
    # Flags of the caller, such as those of the tests, would change the program.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    plan = json.loads(done.stdout)
    return {
        "ms": round(plan["estimated_compute_ms"], 1),
        "gib": round(plan["peak_hbm_bytes"] / GIB, 2),
        "fraction_of_peak": round(plan["estimated_fraction_of_peak"], 3),
        "groups": {each["name"]: round(each["ms"], 1) for each in plan["groups"]},
        "unestimated": plan["unestimated"]["custom_calls"] | plan["unestimated"]["other"],
    }


def read_table() -> dict[str, Any]:
    """Returns the committed table: "versions" of jax and libtpu, and "plans" by name."""
    return json.loads(TABLE.read_text())


def main() -> None:
    """Prints the plans and their ratios to the table."""
    table: dict[str, Any] = read_table() if TABLE.exists() else {"plans": {}}
    print(f"{'recipe':<20} {'ms':>7} {'ratio':>6} {'GiB':>7} {'ratio':>6}  largest kinds, ms")
    for name in [_ONLY.value] if _ONLY.value else PLANS:
        found, known = make_plan(name), table["plans"].get(name)
        columns = []
        for key in ("ms", "gib"):
            ratio = f"{found[key] / known[key]:.3f}" if known else ""
            columns.append(f"{found[key]:>7} {ratio:>6}")
        kinds = sorted(found["groups"].items(), key=lambda item: -item[1])[:5]
        shown = ", ".join(f"{kind} {ms}" for kind, ms in kinds)
        print(f"{name:<20} {' '.join(columns)}  {shown}", flush=True)
        if _WRITE.value:
            table["plans"][name] = found
            table["versions"] = {
                package: importlib.metadata.version(package) for package in ("jax", "libtpu")
            }
            TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
