"""Packaging: the console command, the version, and the content of a built wheel."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import vit_jax
from vit_jax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages of extras, and what they pull in. The core must not need them.
HEAVY = (
    "sklearn",
    "mlxtend",
    "pandas",
    "matplotlib",
    "emoji",
    "fontTools",
    "resvg_py",
    "faster_coco_eval",
)


def run(*args, cwd, path=ROOT):
    env = {**os.environ, "PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, env=env, text=True, capture_output=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_main_lists_commands(tmp_path):
    done = run("-m", "vit_jax", cwd=tmp_path)
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


def test_unknown_command_names_the_nearest(tmp_path):
    done = run("-m", "vit_jax", "trian", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: unknown command 'trian'; did you mean 'train'?\n"


def test_commands_parse_their_own_flags(tmp_path):
    done = run("-m", "vit_jax", "train", "--confg=x", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean: config" in done.stderr
    done = run("-m", "vit_jax", "train-tokenizer", "--help", cwd=tmp_path)
    assert "--captions" in done.stdout


def test_every_command_is_a_module_with_a_main():
    for module, _ in COMMANDS.values():
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert 'if __name__ == "__main__":' in source


def test_version_is_the_same_everywhere():
    assert vit_jax.__version__ == PROJECT["version"]
    assert f"version: {vit_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{vit_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_core_imports_neither_samples_nor_other_frameworks(tmp_path):
    code = (
        "import sys, vit_jax.training.loop, vit_jax.evaluation, vit_jax.pretrained.model\n"
        f"heavy = {(*HEAVY, 'torch', 'tensorflow')!r}\n"
        "print(sorted(set(heavy) & {m.partition('.')[0] for m in sys.modules}))\n"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr


def test_extras_of_the_readme_exist():
    table = (ROOT / "README.md").read_text().partition("## Extras")[2].partition("\n## ")[0]
    named = {
        name.strip("` ")
        for line in table.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    }
    assert named == set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, without the network."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("vit_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = run(
        "-c",
        "import setuptools.build_meta as b; b.build_wheel('..')",
        cwd=source,
        path=source,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_recipes_data_and_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"vit_jax/py.typed", "vit_jax/data/tokenizers/clip_merges.txt.gz"}
    expected |= {f"vit_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    expected |= {
        str(path.relative_to(ROOT))
        for path in (ROOT / "vit_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "examples/", "benchmarks/"))]


def test_recipe_by_name_from_an_installed_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "from vit_jax.recipes import load_recipe; import vit_jax\n"
        "print(vit_jax.__file__, load_recipe('clip_emoji').batch_size)\n"
        "print(load_recipe('ablations/clip_loss').batch_size)\n"
    )
    done = run("-c", code, cwd=tmp_path, path=tmp_path / "site")
    expected = f"{tmp_path / 'site' / 'vit_jax' / '__init__.py'} 256\n128\n"
    assert done.stdout == expected, done.stderr
