"""Broken links in a built site, and whatever its pages would load from elsewhere.

``python docs/check_links.py build/site``
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Only these lead elsewhere without loading anything from there.
LINKS, UNLOADED = {"a", "area"}, {"canonical", "license", "author", "help"}
ADDRESSES = {"href", "src", "data", "poster", "action"}
IN_CSS = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""")


class Page(HTMLParser):
    """What a page links to, what it loads, and where it can be linked to.

    Attributes
    ----------
    anchors
        Its ids and names.
    targets
        What it links to or loads.
    loaded
        Those that a browser fetches by itself.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag names, links to and loads."""
        found = {name: value for name, value in attrs if value}
        self.anchors.update(found[name] for name in ("id", "name") if name in found)
        targets = [found[name] for name in ADDRESSES & set(found)]
        targets += [part.split()[0] for part in found.get("srcset", "").split(",") if part]
        targets += IN_CSS.findall(found.get("style", ""))
        self.targets += targets
        if tag not in LINKS and not UNLOADED & set(found.get("rel", "").split()):
            self.loaded += targets

    def handle_data(self, data: str) -> None:
        """Note what a style sheet within the page loads."""
        if self.cdata_elem == "style":
            self.loaded += IN_CSS.findall(data)


def problems(site: Path) -> list[str]:
    """One line for each broken link, lost anchor and address to load from elsewhere."""
    files = [path.resolve() for path in sorted(site.rglob("*.html"))]
    pages = {path: Page(path) for path in files if "_static" not in path.parts}  # templates there
    found: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: {text}" for text in _broken(path, page, pages)]
        found += [f"{name}: loads {target}" for target in page.loaded if _is_outside(target)]
    for path in sorted(site.rglob("*.css")):
        loaded = IN_CSS.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.name}: loads {target}" for target in loaded if _is_outside(target)]
    return found


def _is_outside(target: str) -> bool:
    parts = urlsplit(target)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def _broken(path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    for target in page.targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        lost = (
            parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].anchors
        )
        if not file.is_file():
            yield f"no file for {target}"
        elif lost:
            yield f"no anchor for {target}"


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines))
    raise SystemExit(1 if lines else 0)
