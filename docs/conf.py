"""How Sphinx builds the site. ``docs/build.py`` calls it; see there for where its sources lie."""

import builtins
import tomllib
from pathlib import Path

import pandas as pd
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from mllm_sched.study.claims import VERDICTS

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "mllm-sched"
author = "The mllm-sched authors"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
include_patterns = ["*.md", "*.rst", "api/*", "notebooks/*.ipynb"]
templates_path = [str(DOCS / "_templates")]  # autosummary would look beside the sources

nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!mllm_sched).*"),  # other packages: their indices would need the network
    (r"py:.*", r".*\._\w+|mllm_sched\..*\.(Result|Rule)"),  # private bases, type variables
]
highlight_language = "none"  # commands and messages; Python says that it is Python

nb_execution_mode = "off"  # the committed outputs are the result
nb_ipywidgets_js = {}  # widgets would be loaded from elsewhere
myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3

autosummary_context = {"generated": ["mllm_sched.pipeline.proto"]}
autodoc_default_options = {"ignore-module-all": True}  # a name has one page, its module's
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # ours are sentences, not types
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
add_module_names = False

html_theme = "pydata_sphinx_theme"
html_title = "mllm-sched"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "board": [], "[A-Z]*": []}
html_theme_options = {
    "header_links_before_dropdown": 8,
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": {"index": [], "**": ["page-toc"]},
}


def _findings() -> dict[str, str]:
    """What the front page says of the claims: how many came out how, and on what evidence."""
    table = pd.read_csv(ROOT / "results" / "claims.csv", keep_default_na=False)
    counts = table["verdict"].value_counts()
    verdicts = [f"**{counts[name]} {name}**" for name in VERDICTS if name in counts]
    evidence = sorted(set(table["evidence"]) - {""})
    return {
        "claims": str(len(table)),
        "verdicts": ", ".join(verdicts),
        "evidence": " or ".join(f"*{name}*" for name in evidence),
    }


myst_substitutions = _findings()


def _without_dead_ends(app: Sphinx, doctree: nodes.document) -> None:
    """Show as plain text what would lead nowhere, or astray.

    A folder of the repository has no page. Python's own types would be taken for attributes of the
    same name, such as ``Item.bytes``.
    """
    for link in list(doctree.findall(addnodes.pending_xref)):
        domain, target = link["refdomain"], link["reftarget"]
        if link["reftype"] == "myst" and not domain and Path(app.srcdir, target).is_dir():
            link.replace_self(link.children)
        elif domain == "py" and hasattr(builtins, target):
            link.replace_self(nodes.Text(target))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", _without_dead_ends)
