"""How Sphinx builds the site. ``docs/build.py`` calls it; see there for where its sources lie."""

import builtins
import tomllib
from pathlib import Path

import pandas as pd
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from mllm_sched.experiments.claims import VERDICTS

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
include_patterns = ["*.md", "*.rst", "api/*", "notebooks/*.ipynb", "results/**.md"]
templates_path = [str(DOCS / "_templates")]  # autosummary would look beside the sources

nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!mllm_sched).*"),  # other packages: their indices would need the network
    (r"py:.*", r".*\._\w+|mllm_sched\..*\.(Kind|Loaded|Result|Rule)"),  # private, type variables
    (r"py:.*", r"mllm_sched\.(edge|pipeline)\.proto\..*"),  # generated code
]
highlight_language = "none"  # commands and messages; Python says that it is Python

nb_execution_mode = "off"  # the committed outputs are the result
nb_ipywidgets_js = {}  # widgets would be loaded from elsewhere
myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3

autosummary_context = {"generated": ["proto"]}  # no reader calls it
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as written, not as they print on this machine
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # ours are sentences, not types
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

html_theme = "pydata_sphinx_theme"
html_title = "mllm-sched"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
PAGES = ("index", "board", "running", "monitoring", "going_further", "[A-Z]*")  # without a sidebar
html_sidebars: dict[str, list[str]] = {page: [] for page in PAGES}
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
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


def _lead_to_folders(app: Sphinx, doctree: nodes.document) -> None:
    """A link to a folder leads to its page if it has one; else only the folder's name is left."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftype"] != "myst" or link["refdomain"]:
            continue
        folder, path = app.env.relfn2path(link["reftarget"], link["refdoc"])
        if f"{folder}/index" in app.env.found_docs:
            link.attributes.update(refdomain="std", reftype="doc", reftarget=f"/{folder}/index")
        elif Path(path).is_dir():
            link.replace_self(link.children)


def _without_builtins(app: Sphinx, doctree: nodes.document) -> None:
    """Do not look up Python's own types: ``bytes`` would be taken for ``Item.bytes``."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["refdomain"] == "py" and hasattr(builtins, link["reftarget"]):
            link.replace_self(nodes.Text(link["reftarget"]))


def _without_object(app: Sphinx, doctree: nodes.document) -> None:
    """Every class derives from ``object``: not worth a line."""
    for line in list(doctree.findall(nodes.paragraph)):
        if line.astext() == "Bases: object":
            line.parent.remove(line)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    for change in (_lead_to_folders, _without_builtins, _without_object):
        app.connect("doctree-read", change)
