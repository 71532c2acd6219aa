"""The import contracts of pyproject.toml."""

import pathlib
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def lint_imports(folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("models/definition.py", "import vit_jax.data.loader", "Each module imports"),
        ("models/swin/model.py", "import vit_jax.models.clip.model", "Architectures share"),
        ("models/swin/windows.py", "import vit_jax.models.swin.model", "No import cycles"),
        ("data/loader.py", "import torch", "Neither torch nor TensorFlow"),
    ],
)
def test_contracts_are_checked(tmp_path, module, line, broken):
    """A copy of the package in which one module imports what it must not."""
    for path in [*ROOT.glob("vit_jax/**/*.py"), ROOT / "pyproject.toml"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    changed = tmp_path / "vit_jax" / module
    changed.write_text(f"{changed.read_text()}\n{line}  # noqa\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"{broken}[^\n]* BROKEN", done.stdout)
