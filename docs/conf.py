"""Configuration of the site: `sphinx-build -W docs site` (extra [docs])."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from sphinx.application import Sphinx
from sphinx.util import logging
from tables import config_keys

import vit_jax

project = "vit_jax"
author = "The vit_jax authors"
copyright = "the vit_jax authors, Apache License 2.0"
version = release = vit_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["tables", "figures"]
html_theme = "sphinx_book_theme"
html_title = "vit_jax"
html_theme_options = {"use_download_button": False, "show_navbar_depth": 1, "navbar_persistent": []}

# Nothing is loaded from other hosts.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
# Notebooks run before a release, with `-D nb_execution_mode=force`.
nb_execution_mode = "off"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_in_temp = True
nb_merge_streams = True

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def _without_repository_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files of the repository become their text: only docs/ is on the site."""

    def text(match: re.Match[str]) -> str:
        if not (ROOT / "docs" / page).parent.joinpath(match[2]).exists():
            logging.getLogger(__name__).warning("%s: no file at %s", page, match[2])
        return match[1]

    source[0] = _LINK.sub(text, source[0])


def _write_pages(app: Sphinx) -> None:
    """Pages that are generated from the code."""
    page = config_keys.page()
    path = pathlib.Path(app.srcdir) / "config_keys.md"
    if not path.exists() or path.read_text(encoding="utf-8") != page:
        path.write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Registers the steps above."""
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _without_repository_links)
