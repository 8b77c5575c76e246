"""Build the site, then check every link in it.

The documents at the root of the repository link to each other, to notebooks, figures and files by
their relative paths. So the site's source is a folder in which all of that lies where it lies in the repository, with the pages of ``docs/`` beside it, and nothing has to be rewritten.

``python docs/build.py build/site`` builds; ``--links`` asks the outside links too.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from check_links import problems
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
        elif path.name == "notebooks":
            shutil.copytree(path, place)
        else:
            place.symlink_to(path)


def build(out: Path, builder: str = "html") -> int:
    """Run Sphinx on a fresh source; a warning is an error. The exit status."""
    with TemporaryDirectory() as folder:
        source, trees = Path(folder, "source"), Path(folder, "trees")
        source.mkdir()
        lay_out(source)
        quiet = ["--quiet", "--fail-on-warning", "--keep-going"]
        places = ["--conf-dir", str(DOCS), "--doctree-dir", str(trees), str(source), str(out)]
        return build_main(["--builder", builder, *quiet, *places])


def main(argv: Sequence[str] | None = None) -> int:
    """Build, check, and say what is wrong; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to build into; must not exist")
    parser.add_argument("--links", action="store_true", help="ask the outside links too")
    options = parser.parse_args(argv)
    if options.out.exists():
        parser.error(f"{options.out} exists; remove it first, or name another folder")
    if build(options.out) or (options.links and build(options.out.with_name("links"), "linkcheck")):
        return 1
    found = problems(options.out)
    print("\n".join([*found, f"{options.out / 'index.html'}: {len(found)} broken links"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
