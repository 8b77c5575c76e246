import json
import os
import platform
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mllm_sched import paths
from mllm_sched.experiments.provenance import (
    RECORDING,
    as_csv,
    as_png,
    as_svg,
    checksum,
    save_results,
)

DATA = ["data/published/orin_sweep_trace.csv"]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.delenv(RECORDING, raising=False)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "COMMITTED", tmp_path / "results")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")


def figure(last=3.0, label=""):
    drawn = Figure(figsize=(3, 2))
    drawn.subplots().plot([1, 2, last])
    drawn.suptitle(label)
    return drawn


def table(value=1.0):
    return pd.DataFrame({"scheduler": ["UCB", "Random"], "energy_j": [value, 2.0], "n": [3, 4]})


def save(value=1.0, drawn=None, **settings):
    arguments = {"parameters": {"steps": 7, "seeds": 3}, "data": DATA, **settings}
    figures = {"over_time": drawn or figure()}
    return save_results("study", {"energy": table(value)}, figures, **arguments)


def aged(folder):
    """Contents of a folder, whose files then look as if written long ago."""
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in contents:
        os.utime(folder / name, (1, 1))
    return contents


def touched(folder):
    return {file.name for file in folder.iterdir() if file.stat().st_mtime != 1}


def test_tables_figures_and_their_origin_are_written(tmp_path):
    folder = save()
    assert folder == tmp_path / "results" / "study"
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["energy.csv", "over_time.png", "over_time.svg", "provenance.json"]
    assert (folder / "energy.csv").read_text() == "scheduler,energy_j,n\nUCB,1,3\nRandom,2,4\n"
    assert "<svg" in (folder / "over_time.svg").read_text()
    assert (folder / "over_time.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "provenance.json").read_text())
    for name, digest in {**record["tables"], **record["figures"]}.items():
        assert checksum(folder / name) == digest
    assert [*record["tables"], *record["figures"], "provenance.json"] == [
        *("energy.csv", "over_time.svg", "over_time.png", "provenance.json")
    ]


@pytest.mark.parametrize("value", [1.0, 1.00001])
def test_rounding_leaves_no_trace(value):
    aged(save())
    assert not touched(save(value, figure(2.0 + value)))


def test_a_changed_number_rewrites_its_table_and_the_origin():
    aged(save())
    folder = save(1.0001)
    assert touched(folder) == {"energy.csv", "provenance.json"}
    record = json.loads((folder / "provenance.json").read_text())
    assert record["tables"] == {"energy.csv": checksum(folder / "energy.csv")}


@pytest.mark.parametrize(("last", "label"), [(3.1, "0.51"), (3.0, "0.52")])
def test_a_figure_that_changed_is_rewritten_with_its_png(last, label):
    aged(save(drawn=figure(label="0.51")))
    folder = save(drawn=figure(last, label))
    assert touched(folder) == {"over_time.svg", "over_time.png", "provenance.json"}


@pytest.mark.parametrize("name", ["energy.csv", "over_time.svg"])
def test_a_lost_or_edited_result_is_mended(name):
    folder = save()
    before = aged(folder)
    (folder / name).write_text("edited")
    assert aged(save()) == {**before, "provenance.json": (folder / "provenance.json").read_bytes()}


def test_live_numbers_stay_out_of_the_results(tmp_path):
    assert save(live=True) == tmp_path / "build" / "live" / "study"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-17, -1e-17])
def test_what_is_zero_but_for_rounding_is_written_as_zero(value):
    given = pd.DataFrame({"a": [value, 1e-6], "b": [np.nan, 0.5], "c": [1, 2]})
    assert as_csv(given) == b"a,b,c\n0,,1\n1e-06,0.5,2\n"
    assert given["a"].tolist() == [value, 1e-6]  # the caller's table stays as it is
    assert as_csv(given.set_axis([0, 1, 2], axis="columns")) == b"0,1,2\n0,,1\n1e-06,0.5,2\n"


def test_rounding_beyond_a_thousandth_of_a_point_leaves_an_svg_as_it_is():
    """Markers and clips, which Matplotlib names after a digest of their coordinates, too."""
    files = []
    for noise in (0.0, 1e-9, 1e-2):
        ax = plt.figure().subplots()
        ax.errorbar([1, 2], [3.17, 4.3 + noise], yerr=0.131 * (1 + noise), fmt="o", label="0.12345")
        ax.legend()
        files.append(as_svg(ax.figure))
    assert files[0] == files[1] != files[2]
    assert b">0.12345</text>" in files[0]  # text is not rounded
    names = set(re.findall(rb'id="(shape\d+)"', files[0]))
    used = set(re.findall(rb'href="#([^"]+)"|url\(#([^)]+)\)', files[0]))
    assert names and {a or b for a, b in used} <= names


@pytest.mark.parametrize("write", [as_svg, as_png])
def test_a_figure_tells_no_date_and_no_version_and_is_the_same_again(write):
    files = [write(figure()) for _ in range(2)]
    assert files[0] == files[1] and b"<dc:date>" not in files[0]
    assert mpl.__version__.encode() not in files[0] and b"Matplotlib" not in files[0]


def test_what_is_no_longer_written_goes_and_what_an_editor_left_stays():
    folder = save()
    for name in (".~lock.energy.csv#", ".energy.csv", "notes.txt"):
        (folder / name).write_text("")
    save_results("study", {"cost": table()}, {}, {"steps": 7, "seeds": 3}, data=DATA)
    names = sorted(file.name for file in folder.iterdir())
    left = [".energy.csv", ".~lock.energy.csv#"]
    assert names == [*left, "cost.csv", "notes.txt", "provenance.json"]


def test_the_origin_tells_what_the_numbers_depend_on():
    record = json.loads((save() / "provenance.json").read_text())
    assert record["parameters"] == {"steps": 7, "seeds": 3}
    assert record["data"] == {DATA[0]: checksum(paths.ROOT / DATA[0])}
    assert record["packages"]["numpy"] == np.__version__ and "ruff" not in record["packages"]
    assert record["python"] == platform.python_version()
    assert {"utc", "git", "machine"} <= set(record)


def test_no_folder_or_name_of_the_machine_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/grace")
    monkeypatch.setenv("HOSTNAME", "graces-laptop")
    (tmp_path / "mine.csv").write_text("a\n1\n")
    text = (save(data=[tmp_path / "mine.csv"]) / "provenance.json").read_text()
    assert list(json.loads(text)["data"]) == ["mine.csv"]
    for secret in ("grace", str(paths.ROOT), str(tmp_path)):
        assert secret not in text
    assert platform.node() not in re.findall(r"[\w.-]+", text)


def test_other_parameters_leave_the_committed_results_and_say_so(tmp_path, capsys):
    before = aged(save())
    assert not capsys.readouterr().out
    other = save(2.0, parameters={"steps": 8, "seeds": 3.0, "new": 1})
    assert other == tmp_path / "build" / "results" / "study" and (other / "energy.csv").exists()
    (line,) = capsys.readouterr().out.splitlines()
    assert "new None there, 1 here, steps 7 there, 8 here; written to " in line
    assert "seeds" not in line
    assert aged(tmp_path / "results" / "study") == before


def test_a_maintainer_records_other_parameters_and_a_folder_of_ones_own_takes_any(
    tmp_path, monkeypatch
):
    folder = save()
    monkeypatch.setattr(paths, "COMMITTED", tmp_path / "elsewhere")
    assert save(parameters={"steps": 8}) == folder
    monkeypatch.setattr(paths, "COMMITTED", tmp_path / "results")
    monkeypatch.setenv(RECORDING, "1")
    record = json.loads((save(parameters={"steps": 9}) / "provenance.json").read_text())
    assert record["parameters"] == {"steps": 9}


@pytest.mark.parametrize("content", ["", "[1]", '{"parameters": '])
def test_results_without_their_origin_stay_until_a_maintainer_records_it(content, monkeypatch):
    folder = save()
    whole = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(content)
    assert save() != folder and (folder / "provenance.json").read_text() == content
    monkeypatch.setenv("MLLM_SCHED_RECORD", "1")
    save()
    assert json.loads((folder / "provenance.json").read_text())["tables"] == whole["tables"]
