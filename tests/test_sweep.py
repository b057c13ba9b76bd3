"""sweep: every experiment with every seed, each behind what it starts from; what is done is not done again."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cbst_mx.cluster.commands import run_command
from cbst_mx.errors import ConfigError, RunError, StoppedError
from cbst_mx.rounds import sweep as module
from cbst_mx.rounds.sweep import plan, sweep
from tests import small_runs

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
CHANGES = (*small_runs._SMALL, "self_training.rounds=1")


@pytest.fixture
def files(tmp_path):
    """A source network, and two methods that start from it."""
    demo = os.path.relpath(EXPERIMENTS / "demo.yaml", tmp_path)
    (tmp_path / "source.yaml").write_text(f"extends: {demo}\nname: source\nself_training: {{rounds: 0}}\n")
    for method in ("st", "cbst"):
        (tmp_path / f"{method}.yaml").write_text(
            f"extends: {demo}\nname: {method}\nstarts_from: source\nself_training: {{method: {method}}}\n"
        )
    return tmp_path


def test_the_plan_of_the_papers_rows_has_every_row_and_seed_behind_what_it_starts_from(tmp_path):
    rows = [path for path in sorted(EXPERIMENTS.glob("*.yaml")) if "\npaper:" in path.read_text()]
    assert len(rows) >= 27
    runs = plan(rows, [0, 1, 2], tmp_path)
    names = {run.name for run in runs}
    assert {path.stem for path in rows} <= names
    assert {run.seed for run in runs} == {0, 1, 2}
    for place, run in enumerate(runs):
        assert run.start is None or run.start < place
        assert run.start is None or runs[run.start].seed == run.seed
    folds = [run.fold for run in runs if run.name == "nthu-rome-cbst" and run.seed == 1]
    assert folds == list(range(10))
    (started,) = [run for run in runs if run.name == "gta5-cbst" and run.seed == 2]
    assert runs[started.start].name == "gta5-source"
    at = started.arguments.index("--init")
    assert started.arguments[at + 1] == str(tmp_path / "gta5-source" / "seed-2" / "source" / "parameters.params")
    (mst,) = [run for run in runs if run.name == "gta5-cbst-sp-mst" and run.seed == 0]
    assert "round-" in mst.arguments[mst.arguments.index("--init") + 1]
    assert len({run.folder for run in runs}) == len(runs)


def test_every_file_beside_an_experiment_is_one_or_a_description_of_data_which_is_left_out(tmp_path):
    paths = sorted(EXPERIMENTS.glob("*.yaml"))
    described = [path for path in paths if path.stem.endswith("-data")]
    assert described
    names = {run.name for run in plan(paths, [0], tmp_path)}
    assert names == {path.stem for path in paths} - {path.stem for path in described}
    with pytest.raises(ConfigError, match="camvid-data.yaml has 7 problems"):
        plan(described, [0], tmp_path)


def test_what_is_no_sweep_is_one_sentence(files, tmp_path):
    with pytest.raises(ConfigError, match="seeds must be whole numbers, each once, got 1, 1"):
        plan([files / "st.yaml"], [1, 1], tmp_path)
    (files / "sub").mkdir()
    (files / "sub" / "st.yaml").write_text((files / "st.yaml").read_text().replace("extends: ", "extends: ../"))
    with pytest.raises(ConfigError, match="names of their own, got 'st' in"):
        plan([files / "st.yaml", files / "sub" / "st.yaml"], [0], tmp_path)
    with pytest.raises(ConfigError, match=r"starts from source, and there is no .*sub.source\.yaml"):
        plan([files / "sub" / "st.yaml"], [0], tmp_path)


def done_by(calls, files, failing=()):
    """Return what stands for commands: writes the files of a finished run."""

    def function(arguments, *_):
        calls.append(arguments)
        folder = Path(arguments[arguments.index("--out") + 1])
        if any(name in folder.parts for name in failing):
            return 1, "Error: it failed"
        folder.mkdir(parents=True, exist_ok=True)
        return 0, ""

    return function


@pytest.fixture
def finished(monkeypatch):
    """Let a run count as finished where its folder is there, with an mIoU that its path gives."""
    monkeypatch.setattr(module, "_is_finished", lambda folder: folder.is_dir())
    monkeypatch.setattr(module, "_miou", lambda folder: int(folder.name[-1]) / 10 + 0.1)


def test_runs_come_in_order_are_done_once_and_give_mean_and_spread(files, tmp_path, finished):
    calls = []
    runs = plan([files / "st.yaml", files / "cbst.yaml"], [0, 1], tmp_path / "out", changes=CHANGES)
    assert [run.title for run in runs][:2] == ["source, seed 0", "st, seed 0"]
    result = sweep(runs, tmp_path / "out", done_by(calls, files))
    assert len(calls) == 6
    assert result.failed == {}
    row = next(row for row in result.rows if row.name == "cbst")
    assert row.mean == pytest.approx(0.15)
    assert row.spread == pytest.approx(statistics.stdev([0.1, 0.2]))
    again = sweep(runs, tmp_path / "out", done_by(calls, files))
    assert len(calls) == 6
    assert again.rows == result.rows
    more = plan([files / "st.yaml", files / "cbst.yaml"], [0, 1, 2], tmp_path / "out", changes=CHANGES)
    sweep(more, tmp_path / "out", done_by(calls, files))
    assert len(calls) == 9
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["name"]: len(row["miou"]) for row in stored["rows"]} == {"source": 3, "st": 3, "cbst": 3}


def test_a_run_of_other_settings_is_not_taken_for_done(files, tmp_path, finished):
    calls = []
    for changes in (CHANGES, (*CHANGES, "self_training.portion.initial=0.3")):
        sweep(plan([files / "source.yaml"], [0], tmp_path, changes=changes), tmp_path, done_by(calls, files))
    assert len(calls) == 2


def test_what_fails_stops_neither_others_nor_the_next_call(files, tmp_path, finished):
    calls = []
    runs = plan([files / "st.yaml", files / "cbst.yaml"], [0], tmp_path / "out", changes=CHANGES)
    result = sweep(runs, tmp_path / "out", done_by(calls, files, failing=["st"]))
    assert result.failed == {"st, seed 0": "Error: it failed"}
    assert [row.name for row in result.rows if row.miou] == ["source", "cbst"]
    assert len(calls) == 3
    result = sweep(runs, tmp_path / "out", done_by(calls, files))
    assert (len(calls), result.failed) == (4, {})


class Backwards(module.Alone):
    """A cluster whose shares end in the other order."""

    def each(self, function, shares, *, waiting_for=None, ahead=1):
        for index in range(len(shares))[::-1]:
            yield index, function(*shares[index].arguments, waiting_for)


@pytest.mark.parametrize("failing", [(), ("source",)])
def test_files_of_a_sweep_do_not_depend_on_which_run_ends_first(files, tmp_path, finished, failing):
    for out, cluster in (("alone", None), ("shared", Backwards())):
        runs = plan([files / "source.yaml"], [0, 1, 2], tmp_path / out, changes=CHANGES)
        sweep(runs, tmp_path / out, done_by([], files, failing=failing), cluster=cluster)
    found = [
        {path.name: path.read_text() for path in sorted((tmp_path / out).glob("*.json"))} for out in ("alone", "shared")
    ]
    assert found[0] == found[1]
    assert "results.json" in found[0]


def test_a_sweep_that_is_stopped_says_that_it_goes_on(files, tmp_path, finished):
    runs = plan([files / "source.yaml"], [0, 1], tmp_path / "out", changes=CHANGES)

    def stop(what, done, total):
        if done == 1:
            raise StoppedError(what, done, total)

    with pytest.raises(StoppedError, match="^runs: stopped at 1 of 2; the same command continues$"):
        sweep(runs, tmp_path / "out", done_by([], files), progress=stop)


def test_what_starts_from_a_run_that_failed_is_not_begun(files, tmp_path, finished):
    calls = []
    runs = plan([files / "st.yaml", files / "cbst.yaml"], [0], tmp_path / "out", changes=CHANGES)
    result = sweep(runs, tmp_path / "out", done_by(calls, files, failing=["source"]))
    assert len(calls) == 1
    assert result.failed["cbst, seed 0"] == "the run that it starts from has failed"


def test_a_command_gives_its_code_and_its_last_line():
    assert run_command(["--version"])[0] == 0
    code, said = run_command(["run", "missing.yaml", "--out", "nowhere"])
    assert code == 1
    assert said.startswith("Error: missing.yaml does not exist")


def test_a_command_stops_when_asked_to(tmp_path):
    def stop():
        raise RunError("stop")

    begun = time.monotonic()
    with pytest.raises(RunError, match="stop"):
        run_command(["demo", "--out", str(tmp_path / "demo")], stop)
    assert time.monotonic() - begun < 60


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_command_ends_with_the_process_that_started_it(tmp_path):
    code = f"from cbst_mx.cluster.commands import run_command; run_command(['demo', '--out', {str(tmp_path / 'd')!r}])"
    environment = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 60
    while not (started := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.1)
    while not (tmp_path / "d").exists() and time.monotonic() < deadline:  # it is at work
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{started[0]}").exists() and time.monotonic() < deadline + 60:
        time.sleep(0.1)
    assert not Path(f"/proc/{started[0]}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", [[], ["--cluster", "local:2"]])
def test_a_whole_sweep(files, small_data, tmp_path, monkeypatch, where):
    from click.testing import CliRunner

    from cbst_mx.cli import main

    if where:
        pytest.importorskip("distributed")
    monkeypatch.setenv("CBST_DATA", str(small_data))
    given = ["sweep", str(files / "st.yaml"), str(files / "cbst.yaml"), "--seeds", "0,1", "--out", str(tmp_path / "o")]
    given += [part for change in CHANGES for part in ("--set", change)] + where
    first = CliRunner().invoke(main, given)
    assert first.exit_code == 0, (first.output, first.exception)
    assert "6 runs of 3 experiments" in first.output
    assert (tmp_path / "o" / "report.html").is_file()
    rows = json.loads((tmp_path / "o" / "results.json").read_text())["rows"]
    assert all(len(row["miou"]) == 2 and row["std"] is not None for row in rows)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("parameters.params")}
    assert len(before) >= 6
    assert CliRunner().invoke(main, given).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("parameters.params")} == before
