"""Broken links in a built site, and whatever its pages would load from elsewhere.

``python docs/check_links.py build/site``
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Only these lead elsewhere without loading anything from there.
LINKS, UNLOADED = {"a", "area"}, {"canonical", "license", "author", "help"}
ADDRESSES = {"href", "xlink:href", "src", "data", "poster", "action"}
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
            self.targets += IN_CSS.findall(data)
            self.loaded += IN_CSS.findall(data)


@dataclass(frozen=True)
class Site:
    """A folder of pages, and the anchors of each page."""

    folder: Path
    anchors: Mapping[Path, set[str]]

    def told(self, path: Path, targets: Iterable[str], loaded: Iterable[str]) -> list[str]:
        """One line for whatever is wrong with what one file links to and loads."""
        wrong = [self._wrong(path, target) for target in targets]
        wrong += [f"loads {target}" for target in loaded if _is_outside(target)]
        return [f"{path.relative_to(self.folder)}: {text}" for text in wrong if text]

    def _wrong(self, path: Path, target: str) -> str:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            return ""
        file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not file.is_relative_to(self.folder):
            return f"{target} leads out of the site"
        if not file.is_file():
            return f"no file for {target}"
        known = self.anchors.get(file)
        if parts.fragment and known is not None and unquote(parts.fragment) not in known:
            return f"no anchor for {target}"
        return ""


def problems(folder: Path) -> list[str]:
    """One line for each broken link, link out of the folder, lost anchor, address to load."""
    folder = folder.resolve()
    files = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: Page(path) for path in files}  # those in _static are templates
    site = Site(folder, {path: page.anchors for path, page in pages.items()})
    found: list[str] = []
    for path, page in pages.items():
        found += site.told(path, page.targets, page.loaded)
    for path in sorted(folder.rglob("*.css")):
        loaded = IN_CSS.findall(path.read_text(encoding="utf-8"))
        found += site.told(path, loaded, loaded)
    return found


def _is_outside(target: str) -> bool:
    parts = urlsplit(target)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines))
    raise SystemExit(1 if lines else 0)
