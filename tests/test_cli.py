import pandas as pd
import pytest

from mllm_sched import cli, cli_study

TRACE = "trace:data/published/orin_sweep_trace.csv"


def test_names_lists_devices_and_schedulers(capsys):
    assert cli.main(["names"]) == 0
    out = capsys.readouterr().out
    assert "agx-orin-sim" in out and "trace:PATH.csv" in out and "safe-gp-ucb" in out


def test_run_prints_a_summary_and_writes_every_task(tmp_path, capsys):
    file = tmp_path / "run.csv"
    call = ["run", "--limit", "0.2", "--steps", "40", "--scheduler", "ucb", "--out", str(file)]
    assert cli.main(call) == 0
    assert "latency simulated, energy simulated" in capsys.readouterr().out
    assert len(pd.read_csv(file)) == 40


def test_sweep_of_a_trace(tmp_path, capsys):
    file = tmp_path / "sweep.csv"
    options = ["--limit", "0.3", "--steps", "20", "--seeds", "2", "--out", str(file)]
    assert cli.main(["sweep", "--device", TRACE, *options]) == 0
    assert "published" in capsys.readouterr().out
    assert pd.read_csv(file).groupby("scheduler").size().eq(40).all()


def test_claims_prints_and_writes_nothing(capsys):
    assert cli.main(["claims"]) == 0
    assert "Safe GP-UCB takes less energy than UCB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["run", "--limit", "0.2", "--device", "orin"], "expected one of agx-orin-sim, host"),
        (["run", "--limit", "0.2", "--scheduler", "best"], "expected one of safe-gp-ucb, adaptive"),
        (["run", "--limit", "0.2", "--encoder", "bert"], "agx-orin-sim holds clip-vit-l14-336"),
        (["run", "--limit", "0.2", "--device", "trace:none.csv"], "no file none.csv"),
        (["run", "--limit", "0.001"], "no arm can meet it"),
        (["run", "--limit", "-1"], "limit"),
        (["run", "--limit", "0.2", "--steps", "0"], "steps=0: expected at least 1"),
        (["sweep", "--limit", "0.2", "--device", "host"], "live"),
        (["sweep", "--limit", "0.2", "--seeds", "0"], "give at least one"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(call, message, capsys):
    assert cli.main(call) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("mllm-sched: ") and message in error and "\n" not in error


def test_what_a_device_did_before_it_broke_is_kept(tmp_path, monkeypatch, capsys):
    device = cli_study.open_device("agx-orin-sim")
    intact, calls = device.run, []

    def breaks(arm, task):
        calls.append(arm)
        if len(calls) > 7:
            raise OSError("no power")
        return intact(arm, task)

    monkeypatch.setattr(device, "run", breaks)
    monkeypatch.setattr(cli_study, "open_device", lambda *args, **settings: device)
    file = tmp_path / "run.csv"
    assert cli.main(["run", "--limit", "0.2", "--out", str(file)]) == 1
    assert "stopped after 7 tasks: no power" in capsys.readouterr().err
    assert len(pd.read_csv(file)) == 7
