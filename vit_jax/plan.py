"""Plans a run: memory, FLOPs, time and communication of its step on a slice that is not attached.

    python -m vit_jax.plan --config configs/clip_vit_b16.py --topology v5e:16x16 [--json]

Compiles the step that `vit_jax.train` runs, for a TPU slice (`pip install 'vit_jax[plan]'`, no TPU
needed) or for simulated CPU devices. docs/plan.md explains the output.

    --topology NAME     v4:2x2x2, v5e:16x16, v5p:4x4x4, v6e:8x8, tpu7x:2x2x2; cpu-8 for 8 simulated
                        CPU devices, without libtpu and without estimates of time
    --stage NAME        plan this stage of config.stages instead of the last one
    --variant NAME      plan this variant of config.draw instead of the one with the most FLOPs
    --num_slices N      number of slices of that shape
    --json              print one JSON object instead of a table
    --config.KEY=VALUE  change a key of the config, as in training
"""

from absl import flags

from vit_jax import cli

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Slice to plan for, as v5e:16x16 or cpu-8.", required=True
)
_SLICES = flags.DEFINE_integer("num_slices", 1, "Number of slices of that shape.", lower_bound=1)
_STAGE = flags.DEFINE_string("stage", None, "Stage of config.stages; default: the last one.")
_VARIANT = flags.DEFINE_string("variant", "", "Variant of config.draw; default: the largest.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
    """Prints the plan of a config."""
    from vit_jax.planning import topologies
    from vit_jax.planning.compilation import make_plan
    from vit_jax.planning.report import table
    from vit_jax.training.stages import stage_config

    config = cli.load_config(str(_CONFIG.value))
    if _STAGE.value is not None:
        config = stage_config(config, _STAGE.value)
    topologies.prepare_platform(str(_TOPOLOGY.value))
    topology = topologies.find_slice(str(_TOPOLOGY.value), _SLICES.value)
    plan = make_plan(config, topology, str(_VARIANT.value))
    print(plan.to_json() if _JSON.value else table(plan))


if __name__ == "__main__":
    cli.run(main)
