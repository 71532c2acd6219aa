"""The training step of each published recipe, traced at full size on eight devices."""

import jax
import pytest

from tests.helpers import ROOT
from vit_jax.experiment import build
from vit_jax.planning.compilation import trace_step
from vit_jax.recipes import load_recipe

# Recipes that name a slice. The others train on samples, in other tests.
RECIPES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if "--topology" in path.read_text()
)
# A smaller recipe traces the same code; of the last two, other tests run the parts.
LARGER = ("clip_vit_l14", "mae_vit_l16", "swin_b", "naflex_b16", "regionclip_rn50", "clipseg")
STAGES = [
    *(pytest.param(r, marks=[pytest.mark.release] if r in LARGER else []) for r in RECIPES),
    "vit_b16_augreg:finetune",
    "deit3_b16:finetune",
]


@pytest.mark.parametrize("recipe", STAGES)
def test_recipe_traces(recipe):
    config = load_recipe(recipe)
    config.mesh.fsdp = min(config.mesh.fsdp, jax.device_count())
    config.compute.scan = True  # one trace of a block, for any depth
    experiment = build(config, data=False)
    state, metrics = trace_step(experiment).out_info
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(
        lambda x: x.shape, experiment.abstract_state
    )
    assert metrics["loss"].shape == ()
