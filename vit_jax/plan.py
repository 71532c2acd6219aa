"""Plans a run: python -m vit_jax.plan --config configs/X.py --topology v5e:16x16 [--json]

Compiles the very step that trains for a TPU slice that is not there (`pip install 'vit_jax[plan]'`,
no TPU) and prints whether it fits, memory, FLOPs, the compiler's estimate of the time, and what the
devices send to each other. docs/plan.md explains the metrics.

    --topology NAME    v4:2x2x2, v5e:16x16, v5p:4x4x4, v6e:8x8, tpu7x:2x2x2; cpu-8 for 8 simulated
                       CPU devices, without libtpu and without estimates of time
    --num_slices N     slices of that shape
    --json             one JSON object instead of a table
    --config.key=value as in training
"""

from absl import flags
from ml_collections import config_flags

from vit_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as configs/clip_emoji.py.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Slice to plan for, as v5e:16x16 or cpu-8.", required=True
)
_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of that shape.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
flags.mark_flag_as_required("config")


def main() -> None:
    """Plans and prints."""
    from vit_jax.planning import topologies
    from vit_jax.planning.compilation import make_plan
    from vit_jax.planning.report import table

    topologies.prepare_platform(_TOPOLOGY.value)
    where = topologies.find_slice(_TOPOLOGY.value, _SLICES.value)
    plan = make_plan(_CONFIG.value, where)
    print(plan.to_json() if _JSON.value else table(plan))


if __name__ == "__main__":
    cli.run(main)
