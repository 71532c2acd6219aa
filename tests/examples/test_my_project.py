"""The example project: trained through the real command, and its weights format."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import ROOT, fast_flags

PROJECT = ROOT / "examples" / "my_project"


def train(workdir, recipe, *overrides):
    """Runs `python -m vit_jax train` from the project's folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": fast_flags()}
    return subprocess.run(
        [sys.executable, "-m", "vit_jax", "train", "--config", f"configs/{recipe}.py",
         "--workdir", str(workdir), *overrides],
        cwd=PROJECT, env=env, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip


def test_ablation_trains_with_every_component_of_the_project(tmp_path):
    done = train(
        tmp_path / "run",
        "mixer_ablation",
        "--config.total_steps=40",
        "--config.batch_size=32",
        "--config.hooks.norm.every_steps=20",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    metrics = {key: value for line in lines for key, value in line.items()}
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert [line["step"] for line in lines if "parameter_norm" in line] == [20, 40]
    accuracies = [metrics[f"per_class/shapes/{n}"] for n in ("disc", "square", "triangle")]
    assert metrics["per_class/shapes/worst"] == min(accuracies)
    assert np.mean(accuracies) == pytest.approx(metrics["classification/shapes/top1"], abs=1e-5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["objective"] == {"name": "my_project.losses:PolyLoss", "epsilon": 2.0}
    assert config["optim"]["decay"] == 0.95
    assert config["model"]["depth"] == 3


def test_wrong_key_of_a_component_names_the_nearest(tmp_path):
    done = train(tmp_path / "run", "mixer_ablation", "--config.objective.epsilonn=1.0")
    assert done.returncode == 2
    assert "did you mean 'config.objective.epsilon'" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def mixer(monkeypatch):
    """The tiny Mixer with random parameters."""
    monkeypatch.syspath_prepend(str(PROJECT))
    import vit_jax

    return vit_jax.create_model("my_project.mixer.zoo:MIXER_TINY", seed=1)


def test_features_agree_with_the_forward_pass(mixer):
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    blocks = mixer.features(images, (0, -1))
    assert [block.shape for block in blocks] == [(2, 16, 48)] * 2
    assert mixer(images).shape == (2, 3)


def test_weights_leave_under_the_names_of_timm_and_return(mixer, tmp_path):
    from safetensors.numpy import load_file

    import vit_jax
    from vit_jax.pretrained.weight_files import save_weights

    path = tmp_path / "mixer.safetensors"
    save_weights(mixer.params, mixer.definition, path, "timm")
    tensors = load_file(path)
    assert tensors["stem.proj.weight"].shape == (48, 3, 8, 8)
    assert tensors["blocks.2.mlp_tokens.fc1.weight"].shape == (32, 16)
    again = vit_jax.create_model("my_project.mixer.zoo:MIXER_TINY", weights=path)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        mixer.features(images, (-1,))[0], again.features(images, (-1,))[0]
    )


@pytest.mark.parity
def test_activations_of_timm(mixer, tmp_path):
    """The same weights in timm: features before and logits after the head."""
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    from safetensors.torch import save_file

    import vit_jax

    torch.manual_seed(0)
    theirs = timm.models.mlp_mixer.MlpMixer(
        num_classes=3, img_size=32, patch_size=8, num_blocks=3, embed_dim=48,
        mlp_ratio=(32 / 48, 96 / 48),
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "timm.safetensors"
    save_file(theirs.state_dict(), path)
    ours = vit_jax.create_model("my_project.mixer.zoo:MIXER_TINY", weights=path)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    error = np.abs(np.asarray(ours(images)) - expected).max() / np.abs(expected).max()
    assert error < 1e-5
