"""The documentation: links, examples, generated pages, and the site itself."""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys

import pytest

import vit_jax
from tests.helpers import ROOT
from vit_jax.models.registry import model_names

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("vit_jax/**/*.md")])
GENERATED = {DOCS / "config_keys.md"}  # written when the site is built
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Modules with examples that compile models.
HEAVY = (
    "vit_jax.detection.detect",
    "vit_jax.detection.regions",
    "vit_jax.models.clip.consumers",
    "vit_jax.pretrained.model",
    "vit_jax.segmentation.automatic",
    "vit_jax.segmentation.segment",
)


def anchors(text):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_exist(page):
    text = re.sub(r"^```(?!\{).*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in LINK.findall(text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target in GENERATED:
            continue
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page}: {link}"


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(), re.M)
    pages = {str(p.relative_to(DOCS))[:-3] for p in DOCS.rglob("*.md")} | {"config_keys"}
    assert sorted(listed) == sorted(pages - {"index"})


def test_every_model_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "models.md").read_text(), re.M)
    assert rows == model_names()


def test_every_config_key_has_a_meaning(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    page = importlib.import_module("tables.config_keys").page()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 300
    assert not [row[0] for row in rows if row[-1].strip(" |") == ""]
    assert "| `config.optim` | block | `adamw` |" in page
    assert "| `mixup_alpha` | `float` | `0.0` |" in page
    known = set(re.findall(r"\w+", page))
    for name in ("coming_from", "plan_first", "tpu_pod", "slurm"):
        for line in (DOCS / f"{name}.md").read_text().splitlines():
            ours = line.rpartition(" | ")[2]  # the last column of a table
            for key in re.findall(r"config((?:\.[a-z]\w*)+)", ours):
                assert known.issuperset(key.split(".")[1:]), f"{name}: config{key}"


def modules_with_examples():
    """Modules whose docstrings have examples."""
    for path in sorted((ROOT / "vit_jax").rglob("*.py")):
        if ">>> " in path.read_text():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            heavy = name in HEAVY
            yield pytest.param(name, marks=pytest.mark.release if heavy else [])


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_of_docstrings(name):
    found = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted > 0
    assert found.failed == 0


def test_public_functions_have_examples():
    for name in vit_jax.__all__:
        assert ">>> " in getattr(vit_jax, name).__doc__, name


def blocks_of_python(page):
    """Blocks of Python that a page shows, as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))


def test_blocks_of_python_parse():
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
            ast.parse(block)


@pytest.mark.release
def test_calls_for_newcomers_run():
    exec(compile(blocks_of_python(DOCS / "coming_from.md"), "coming_from.md", "exec"), {})


@pytest.mark.release
def test_the_table_of_models_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    tables = importlib.import_module("tables.models")
    lines = (DOCS / "models.md").read_text().splitlines()
    for model in vit_jax.list_models():
        assert tables.row(model) in lines, model.name
    assert "\n".join(lines).startswith(tables.HEAD.strip())


def build(output, *flags):
    """Builds the site with warnings as errors."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", *flags, DOCS, output]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
             "XLA_FLAGS": ""}, cwd=ROOT, text=True,
        capture_output=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_site_without_warnings_and_without_other_hosts(tmp_path):
    pytest.importorskip("myst_nb")
    build(tmp_path)
    loaded = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*href="([^"]+)""")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for match in loaded.finditer(page.read_text()):
            link = match[1] or match[2]
            assert not re.match(r"(https?:)?//", link), f"{page}: {link}"
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_notebooks_run(tmp_path):
    pytest.importorskip("myst_nb")
    build(tmp_path, "-D", "nb_execution_mode=force")
    for name in ("zero_shot", "own_folder"):
        assert "<img" in (tmp_path / f"notebooks/{name}.html").read_text().split("<article", 1)[1]
