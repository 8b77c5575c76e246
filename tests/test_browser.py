"""What a visitor sees in a real browser: the quickstart in JupyterLab, the page of ``make app``.

Screenshots go to ``build/screenshots``.
"""

import os
import re
import shlex
import subprocess

import nbformat
import pytest
from playwright.sync_api import expect, sync_playwright
from servers import TOKEN, Server, chromium, workplace

from mllm_sched import paths

pytestmark = pytest.mark.slow

SHOTS = paths.BUILD / "screenshots"
QUICKSTART, PAGE = "00_quickstart.ipynb", "12_explorer.ipynb"
RUN_MS, SHOW_MS = 90_000, 20_000
HARMLESS = re.compile("favicon|WebGL|ResizeObserver|deprecat", re.I)
ICONS = "https://cdn.jsdelivr.net/npm/@fortawesome/"  # of Voila's; there may be no network
VIEW = {"viewport": {"width": 1280, "height": 1000}}
ROOT = [] if os.geteuid() else ["--allow-root"]


@pytest.fixture(scope="module")
def browser():
    where = chromium()
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if not os.geteuid() else []
        opened = playwright.chromium.launch(executable_path=where, args=options)
        yield opened
        opened.close()


def watched(page):
    """The page, with a list of what its console complains of."""
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda told: _note(page.complaints, told))
    return page


def _note(complaints, told):
    at = told.location["url"]
    if told.type == "error" and not HARMLESS.search(told.text + at) and not at.startswith(ICONS):
        complaints.append(f"{told.text} {at}")


@pytest.fixture(scope="module")
def voila(tmp_path_factory):
    """What `make app` starts, on a port of its own."""
    folder, environment = workplace(tmp_path_factory.mktemp("app"), PAGE)
    with Server("voila", PAGE, *app_options(), folder=folder, environment=environment) as server:
        yield server


def app_options():
    """Options of Voila in the Makefile."""
    told = subprocess.run(["make", "-n", "app"], cwd=paths.ROOT, capture_output=True, text=True)
    (line,) = (line for line in told.stdout.splitlines() if PAGE in line)
    return [word for word in shlex.split(line) if word.startswith("--")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab with the quickstart, and its folder."""
    folder, environment = workplace(tmp_path_factory.mktemp("lab"), QUICKSTART)
    options = [f"--IdentityProvider.token={TOKEN}", "--ServerApp.ip=127.0.0.1", *ROOT]
    with Server("jupyterlab", *options, folder=folder, environment=environment) as server:
        yield server, folder


@pytest.fixture(scope="module")
def opened(voila, lab, browser):
    """The page that Voila serves, opened once; its notebook runs while the other server starts."""
    page = watched(browser.new_page(**VIEW))
    page.goto(voila.address(), timeout=RUN_MS, wait_until="commit")
    yield page
    page.close()


@pytest.fixture
def app(opened):
    """The same at its first tab, once its figures are there; it must not complain in a test."""
    _tab(opened, "Explorer")
    expect(opened.locator(".explorer-learned img")).to_be_visible(timeout=RUN_MS)
    yield opened
    assert not opened.complaints


def test_the_quickstart_runs_in_jupyterlab_from_its_menu(opened, lab, browser):
    server, folder = lab
    page = watched(browser.new_page(**VIEW))
    page.goto(f"{server.address()}/lab/tree/{QUICKSTART}?token={TOKEN}", timeout=RUN_MS)
    cells = page.locator(".jp-NotebookPanel .jp-CodeCell")
    idle = page.get_by_text("Python 3 (ipykernel) | Idle")  # in the status bar
    expect(idle).to_be_visible(timeout=RUN_MS)
    page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    count = sum(c.cell_type == "code" for c in nbformat.read(folder / QUICKSTART, 4).cells)
    expect(cells).to_have_count(count)
    for place in range(count):
        prompt = cells.nth(place).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(f"[{place + 1}]:", timeout=RUN_MS)
    expect(idle).to_be_visible(timeout=RUN_MS)
    assert page.locator(".jp-NotebookPanel .jp-OutputArea-output img").count() == 2
    wrong = '[data-mime-type="application/vnd.jupyter.error"]'
    assert page.locator(f".jp-NotebookPanel {wrong}").count() == 0
    assert "Traceback" not in page.locator(".jp-NotebookPanel").inner_text()
    page.locator(".jp-NotebookPanel .jp-OutputArea-output img").first.scroll_into_view_if_needed()
    page.screenshot(path=_shot("lab"))
    page.close()
    assert not page.complaints


def test_make_app_listens_on_the_loopback_alone(app, voila):
    connections = [each for one in voila.family() for each in one.net_connections()]
    heard = {each.laddr for each in connections if each.status == "LISTEN"}
    assert ("127.0.0.1", voila.port) in heard
    assert {address.ip for address in heard} == {"127.0.0.1"}


def test_the_page_shows_both_applications_and_no_code(app):
    expect(app).to_have_title("mllm-sched explorer")
    expect(app.locator("h1")).to_contain_text("What does each scheduler know after n tasks?")
    assert app.locator(".explorer-board img").is_visible()
    assert "40" in app.locator(".explorer-learned img").get_attribute("alt")
    assert "import" not in app.locator("body").inner_text()
    app.screenshot(path=_shot("explorer"))
    app.locator(".explorer-board img").scroll_into_view_if_needed()
    app.screenshot(path=_shot("explorer-board"))
    _tab(app, "Calculator")
    expect(app.locator(".calculator")).to_be_visible()
    app.screenshot(path=_shot("calculator"))


def test_the_slider_moves_on_to_another_task(app):
    before = app.locator(".explorer-learned img").get_attribute("src")
    table = app.locator(".explorer-table").inner_text()
    app.locator(".explorer-task .noUi-handle").focus()
    app.keyboard.press("ArrowRight")
    picture = app.locator(".explorer-learned img")
    expect(picture).to_have_attribute("alt", re.compile("after 41 tasks"), timeout=SHOW_MS)
    assert picture.get_attribute("src") != before
    expect(app.locator(".explorer-table")).to_contain_text("of 41")
    assert app.locator(".explorer-table").inner_text() != table


def test_the_calculator_answers_a_slider_and_refuses_an_absurd_input(app):
    _tab(app, "Calculator")
    headline = app.locator(".calculator-headline")
    before = headline.inner_text()
    app.locator(".calculator-devices-slider .noUi-handle").focus()
    app.keyboard.press("ArrowRight")
    expect(headline).not_to_have_text(before, timeout=SHOW_MS)
    good = headline.inner_text()
    _type(app, ".calculator-devices-text input", "-5")
    message = app.locator(".calculator-devices-message")
    expect(message).to_contain_text("devices: -5", timeout=SHOW_MS)
    expect(headline).to_have_text(good)
    app.screenshot(path=_shot("calculator-refused"))


def _tab(app, title):
    app.locator(".lm-TabBar-tab", has_text=title).click(timeout=RUN_MS)


def _type(app, where, text):
    app.locator(where).fill(text)
    app.locator(where).press("Enter")


def _shot(name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    return SHOTS / f"{name}.png"
