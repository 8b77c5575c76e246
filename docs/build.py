"""Build the site, then check every link in it.

The documents at the root of the repository link to each other, to notebooks, figures and files by
their relative paths. So the site's source is a folder in which all of that lies where it lies in
the repository, with the pages of ``docs/`` beside it, and no link has to be rewritten but those of
the root to these pages. Files that git does not know are left out.

``python docs/build.py build/site`` builds; ``--links`` asks the outside links too.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from check_links import problems
from results_pages import write_pages
from sphinx.cmd.build import build_main

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


def sources(root: Path = ROOT) -> list[Path]:
    """Files of the repository, relative to it; without git, all that is not built or hidden."""
    try:
        git = ["git", "-C", str(root), "ls-files", "-z"]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        files = [Path(name) for name in done.stdout.split("\0") if name]
    except FileNotFoundError:
        files = []
    if not files:  # an unpacked archive, or no git at all
        files = [path.relative_to(root) for path in root.rglob("*")]
        files = [path for path in files if not any(map(_is_made, path.parts))]
    return [path for path in files if (root / path).is_file()]


def _is_made(name: str) -> bool:
    return name in ("build", "__pycache__") or name[0] == "."


def lay_out(source: Path) -> None:
    """Copy what the site is made of into one folder."""
    for path in sources():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    for path in source.glob("*.md"):
        path.write_text(path.read_text().replace("](docs/", "]("))
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*.rst"), *DOCS.glob("*.svg")]:
        shutil.copy(path, source)
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
