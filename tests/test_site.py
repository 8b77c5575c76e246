"""`make site`: a stranger finds every page, no link is broken, and nothing comes from elsewhere."""

import html
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from mllm_sched import paths

DOCS = paths.ROOT / "docs"
sys.path.insert(0, str(DOCS))
from build import sources  # noqa: E402

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
LEFT_OUT = (
    "mllm_sched.edge.proto",
    "mllm_sched.pipeline.proto",
    "mllm_sched.harness.fake_jetson.programs",
)
built = pytest.mark.slow  # the whole site, half a minute and more
LINE = re.compile(r"<[^>]+>")


def run(script, *arguments):
    command = [sys.executable, str(DOCS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A warning of Sphinx, or a broken link, would fail the build."""
    out = tmp_path_factory.mktemp("site") / "site"
    done = run("build.py", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken links" in done.stdout
    return out


def small_site(tmp_path, text):
    """Build one page, beside which lies a folder, as the site is built."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "index.md").write_text(text)
    code = "import sys; from build import sphinx; raise SystemExit(sphinx(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=DOCS, capture_output=True, text=True, check=False)
    return done, (tmp_path / "out" / "index.html").read_text()


def modules():
    """Every public module of the package by its dotted name."""
    for path in (paths.ROOT / "mllm_sched").rglob("*.py"):
        parts = path.relative_to(paths.ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join(parts)
        if len(parts) > 1 and not parts[-1].startswith("_") and not name.startswith(LEFT_OUT):
            yield name


def planted(tmp_path, body):
    """What the checker says of one page with this body, beside whose folder lies a file."""
    (tmp_path.parent / "out.txt").touch()
    (tmp_path / "index.html").write_text(f'<html><body><h1 id="top">T</h1>{body}</body></html>')
    done = run("check_links.py", tmp_path)
    assert bool(done.returncode) == bool(done.stdout.strip())
    return done.stdout


@built
def test_the_front_page_counts_the_verdicts(site):
    front = html.unescape((site / "index.html").read_text()).replace("’", "'")
    table = pd.read_csv(paths.RESULTS / "claims.csv")
    assert f"Of {len(table)} claims" in front
    for verdict, count in table["verdict"].value_counts().items():
        assert f"<strong>{count} {verdict}</strong>" in front
    for claim in table["claim"]:
        assert claim in front


@built
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_a_page_with_its_committed_figures(site, notebook):
    page = (site / "notebooks" / f"{notebook.stem}.html").read_text()
    cells = nbformat.read(notebook, as_version=4).cells
    title = cells[0].source.splitlines()[0].removeprefix("# ")
    assert title in LINE.sub("", (site / "notebooks.html").read_text())
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(re.findall(r'<img [^>]*src="\.\./_images/[0-9a-f]+\.png"', page)) == len(figures)


@built
def test_every_document_and_public_module_has_a_page_and_generated_code_has_none(site):
    for name in ("README", "REPORT", "DEVIATIONS", "CONTRIBUTING", "CHANGELOG"):
        assert (site / f"{name}.html").is_file(), name
    pages = {path.stem for path in (site / "api").glob("*.html")}
    assert pages == set(modules())


def test_files_that_git_does_not_know_are_left_out(tmp_path):
    (tmp_path / "build").mkdir()
    for name in ("README.md", "NOTES.md", ".hidden", "build/made.md"):
        (tmp_path / name).touch()
    assert sorted(map(str, sources(tmp_path))) == ["NOTES.md", "README.md"]  # an archive
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "README.md"], check=True)
    assert list(map(str, sources(tmp_path))) == ["README.md"]


@built
def test_a_folder_without_a_page_is_only_named(tmp_path):
    done, page = small_site(tmp_path, "# Title\n\n[The folder](folder)\n")
    assert done.returncode == 0, done.stderr
    assert "The folder" in page and 'href="folder' not in page


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<a href="gone.html">x</a>', "no file for gone.html"),
        ('<img src="gone.png">', "no file for gone.png"),
        ("<style>p { background: url(gone.png) }</style>", "no file for gone.png"),
        ('<a href="/etc/hostname">x</a>', "/etc/hostname leads out of the site"),
        ('<a href="../out.txt">x</a>', "../out.txt leads out of the site"),
        ('<a href="#gone">x</a>', "no anchor for #gone"),
        ('<a href="index.html#gone">x</a>', "no anchor for index.html#gone"),
        ('<script src="https://cdn.invalid/a.js"></script>', "loads https://cdn.invalid/a.js"),
        ('<link rel="stylesheet" href="//cdn.invalid/a.css">', "loads //cdn.invalid/a.css"),
        ("<style>@import 'https://cdn.invalid/b.css';</style>", "loads https://cdn.invalid/b.css"),
    ],
)
def test_the_checker_finds_what_is_planted(tmp_path, body, said):
    assert planted(tmp_path, body) == f"index.html: {said}\n"


def test_the_checker_leaves_sound_and_outside_links_alone(tmp_path):
    links = ["#top", "index.html#top", "?q=1#top", "https://example.org/a#b", "mailto:a@b.org"]
    body = "".join(f'<a href="{link}">x</a>' for link in links)
    assert planted(tmp_path, body + '<img src="data:image/png;base64,AAAA">').strip() == ""


def test_the_checker_reads_style_sheets(tmp_path):
    face = '@font-face { src: url("https://cdn.invalid/f.woff2"), url(gone.woff2); }'
    (tmp_path / "site.css").write_text(face)
    said = planted(tmp_path, "")
    assert "site.css: loads https://cdn.invalid/f.woff2" in said
    assert "site.css: no file for gone.woff2" in said


def test_a_folder_that_exists_is_not_built_over(tmp_path):
    done = run("build.py", tmp_path)
    assert done.returncode == 2
    assert "exists; remove it first" in done.stderr
