"""Build the site, then check every link in it.

The documents at the root of the repository link to each other, to notebooks, figures and files by
their relative paths. So the site's source is a folder in which all of that lies where it lies in
the repository, with the pages of ``docs/`` beside it, and no link has to be rewritten.

``python docs/build.py build/site`` builds; ``--links`` asks the outside links too.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from check_links import problems
from results_pages import write_pages
from sphinx.cmd.build import build_main

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


def lay_out(source: Path) -> None:
    """Put what the site is made of into one folder: pages as copies, all else as links."""
    kept = [path for path in ROOT.iterdir() if path.name != "build" and path.name[0] != "."]
    for path in [*kept, *DOCS.glob("*.md"), *DOCS.glob("*.rst")]:
        place = source / path.name
        if path.suffix in (".md", ".rst"):  # Sphinx knows a page by its real path
            shutil.copy(path, place)
        elif path.name in ("notebooks", "results"):
            shutil.copytree(path, place)
        else:
            place.symlink_to(path)
    write_pages(source / "results")


def sphinx(source: str | Path, out: str | Path, builder: str = "html") -> int:
    """Run Sphinx, for which a warning is an error; the exit status."""
    quiet = ["--quiet", "--fail-on-warning", "--keep-going"]
    with TemporaryDirectory() as trees:
        places = ["--conf-dir", str(DOCS), "--doctree-dir", trees, str(source), str(out)]
        return build_main(["--builder", builder, *quiet, *places])


def build(out: Path, outside: bool = False) -> bool:
    """Build the site; ``outside`` asks the links to elsewhere. Whether all went well."""
    with TemporaryDirectory() as source:
        lay_out(Path(source))
        if sphinx(source, out):
            return False
        return not outside or not sphinx(source, out.with_name("links"), "linkcheck")


def main(argv: Sequence[str] | None = None) -> int:
    """Build, check, and say what is wrong; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to build into; must not exist")
    parser.add_argument("--links", action="store_true", help="ask the outside links too")
    options = parser.parse_args(argv)
    if options.out.exists():
        parser.error(f"{options.out} exists; remove it first, or name another folder")
    if not build(options.out, outside=options.links):
        return 1
    found = problems(options.out)
    print("\n".join([*found, f"{options.out / 'index.html'}: {len(found)} broken links"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
