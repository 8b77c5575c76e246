"""Results after a rerun against those that were kept before it: the same, but for rounding.

``python -m mllm_sched.study.held results build/held``; ``make test`` calls it. Another processor
rounds otherwise, so numbers may differ a little. Counts, texts and shapes may not. Pictures made of
pixels are not compared: each has its figure as SVG beside it.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import math
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

RELATIVE = 1e-4  # of numbers in tables
NOTHING = 1e-9  # what is as good as zero in them
COUNT = re.compile(r"-?(\d{1,5}|\d{7,})")  # a whole number; one of six digits may be a rounded one
MOVED = 0.1  # points, which no eye sees
STYLED = 1e-3  # of opacities, widths of lines, sizes of letters, and factors
SHADE = 3  # levels of 255, of a picture within a figure

COORDINATES = {"d", "x", "y", "width", "height", "transform", "viewBox", "points"}
FACTORS = re.compile(r"(scale|matrix|skew)\w*\($")  # of a transform, before its numbers
NUMBER = re.compile(r"(#\w+|-?\d+\.?\d*(?:e[+-]?\d+)?)")  # or a colour
PICTURE = "data:image/png;base64,"


def compare(held: Path, now: Path) -> list[str]:
    """The first difference of every table and figure beneath two folders; none if all hold.

    Raises
    ------
    FileNotFoundError
        When ``held`` is no folder with tables or figures: nothing would be compared.
    """
    before, after = _files(held), _files(now)
    if not before:
        raise FileNotFoundError(f"no tables or figures in {held}: nothing to compare with")
    found = []
    for name in sorted(before | after):
        if name not in after:
            found.append(f"{name}: is missing")
        elif name not in before:
            found.append(f"{name}: is new")
        elif difference := _difference(held / name, now / name):
            found.append(f"{name}: {difference}")
    return found


def _files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.suffix in (".csv", ".svg"))
    return {path.relative_to(folder).as_posix() for path in paths}


def _difference(held: Path, now: Path) -> str:
    one, other = held.read_bytes(), now.read_bytes()
    if one == other:
        return ""
    texts = one.decode(), other.decode()
    return table_difference(*texts) if held.suffix == ".csv" else figure_difference(*texts)


def table_difference(held: str, now: str) -> str:
    """What differs first between two tables as CSV; empty if nothing does."""
    tables = [list(csv.reader(io.StringIO(text))) for text in (held, now)]
    header = tables[0][0] if tables[0] else []
    for place, (row, new) in enumerate(zip_longest(*tables), start=1):
        if row is None or new is None or len(row) != len(new):
            return f"line {place}: {_line(row)} became {_line(new)}"
        for column, (cell, given) in enumerate(zip(row, new, strict=True)):
            if not _same_cell(cell, given):
                return f"line {place}, {header[column]}: {cell!r} became {given!r}"
    return ""


def _line(row: list[str] | None) -> str:
    return "nothing" if row is None else repr(",".join(row))


def _same_cell(held: str, now: str) -> bool:
    if held == now:
        return True
    if COUNT.fullmatch(held) and COUNT.fullmatch(now):
        return False
    try:
        return math.isclose(float(held), float(now), rel_tol=RELATIVE, abs_tol=NOTHING)
    except ValueError:
        return False


def figure_difference(held: str, now: str) -> str:
    """What differs first between two figures as SVG; empty if nothing does that one could see."""
    elements = [list(ElementTree.fromstring(text).iter()) for text in (held, now)]
    for one, other in zip_longest(*elements):
        if one is None or other is None or one.tag != other.tag:
            return f"{_element(one)} became {_element(other)}"
        for text, new in ((one.text, other.text), (one.tail, other.tail)):
            if (text or "").split() != (new or "").split():
                return f"{_element(one)}: text {text!r} became {new!r}"
        if one.keys() != other.keys():
            return f"{_element(one)}: attributes {one.keys()} became {other.keys()}"
        for key, value in one.items():
            if difference := _attribute_difference(key.split("}")[-1], value, other.get(key, "")):
                return f"{_element(one)}: {difference}"
    return ""


def _element(element: ElementTree.Element | None) -> str:
    if element is None:
        return "the end"
    name = element.tag.split("}")[-1]
    return f"<{name} id={element.get('id')!r}>" if element.get("id") else f"<{name}>"


def _attribute_difference(key: str, held: str, now: str) -> str:
    if held == now:
        return ""
    if held.startswith(PICTURE) and now.startswith(PICTURE):
        return "" if _same_picture(held, now) else "its picture changed"
    tolerance = MOVED if key in COORDINATES else STYLED
    parts = [NUMBER.split(text) for text in (held, now)]
    if len(parts[0]) != len(parts[1]):
        return f"{key}: {len(parts[0]) // 2} numbers became {len(parts[1]) // 2}"
    for one, other in zip(*parts, strict=True):
        if "(" in one:
            tolerance = STYLED if FACTORS.search(one) else MOVED
        if one.strip() != other.strip() and not _near(one, other, tolerance):
            return f"{key}: {one.strip()!r} became {other.strip()!r}"
    return ""


def _near(held: str, now: str, tolerance: float) -> bool:
    try:
        return abs(float(held) - float(now)) <= tolerance
    except ValueError:
        return False  # a word or a colour


def _same_picture(held: str, now: str) -> bool:
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text.removeprefix(PICTURE)))), dtype=int)
        for text in (held, now)
    ]
    return pixels[0].shape == pixels[1].shape and int(np.abs(pixels[0] - pixels[1]).max()) <= SHADE


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print what differs; exit status 1 if anything does."""
    parser = argparse.ArgumentParser(prog="mllm_sched.study.held", description=main.__doc__)
    parser.add_argument("held", type=Path, help="folder kept before")
    parser.add_argument("now", type=Path, help="folder as it is now")
    options = parser.parse_args(argv)
    try:
        found = compare(options.held, options.now)
    except FileNotFoundError as error:
        print(error)
        return 2
    print(*found, sep="\n", end="\n" if found else "")
    if found:
        print(f"{len(found)} of the results are not what they were")
    else:
        print("all tables and figures are what they were, but for rounding")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
