"""A page for every folder of results: its figures to look at, its tables to download."""

from __future__ import annotations

from pathlib import Path

INDEX = """# Results

What the notebooks and `make peers` computed, as committed: every figure, every table, and the
provenance of both.

```{toctree}
:glob:

*/index
```
"""


def write_pages(results: Path) -> None:
    """Write ``index.md`` into the folder of results and into each of its folders."""
    (results / "index.md").write_text(INDEX)
    for folder in filter(Path.is_dir, results.iterdir()):
        (folder / "index.md").write_text(_page(folder))


def _page(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    figures = [name for name in names if name.endswith(".svg")]
    downloads = [f"- [`{name}`]({name})" for name in names if name not in figures]
    parts = [f"# {folder.name}", *_notebook(folder), "\n".join(downloads)]
    return "\n\n".join([*parts, *(f"## {name}\n\n![{name}]({name})" for name in figures)])


def _notebook(folder: Path) -> list[str]:
    path = f"notebooks/{folder.name}.ipynb"
    if not (folder.parents[1] / path).exists():
        return []
    return [f"Computed and explained in [the notebook](../../{path})."]
