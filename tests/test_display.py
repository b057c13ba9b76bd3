"""What is shown of work in progress: bars in 80 columns, plain lines that do not wrap, events, or warnings only."""

from __future__ import annotations

import io
import json
import logging
import re
import struct

import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.cli.base import Bars, Terminal
from cbst_mx.cli.live_events import TensorBoard
from cbst_mx.messages import DETAIL, Iteration, Part
from tests import tiny

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d ")
PARTS = [
    Part("day2dusk", 0, "training", "day2dusk, source: training", 46_800, 8),
    Part("day2dusk", 0, "evaluation on target", "day2dusk, source: evaluation on target", 500),
    Part("day2dusk", 1, "training", "day2dusk, round 1: training", 46_800, 8),
    Part("day2dusk", 1, "evaluation on target", "day2dusk, round 1: evaluation on target", 500),
]
LOGGER = logging.getLogger("cbst_mx.rounds")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def opened(terminal, **options):
    """Return a display, what it writes to, and the clock that it reads."""
    stream, clock = io.StringIO(), Clock()
    bars = Bars(Terminal(file=stream, width=80, force_terminal=terminal, color_system=None), **options)
    bars.tracker.clock = clock
    bars.follow(PARTS)
    return bars, stream, clock


def work(bars, clock):
    """Do the source training, its evaluation, and half of the first round's training."""
    for place, steps in ((0, (0, 1, 20_000, 46_800)), (1, (1, 500)), (2, (0, 1, 23_400))):
        for done in steps:
            clock.now += 31 + done
            step = Iteration(done, loss=0.43128, rate=0.00707) if place != 1 and done else done
            bars(PARTS[place].title, step, PARTS[place].total)
        if place == 1:
            extra = {"result": {"kind": "evaluation", "set": "target", "miou": 0.525}}
            LOGGER.info("day2dusk, source: mIoU on target 52.5 %", extra=extra)


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "cbst_mx")


def test_a_terminal_of_80_columns_shows_run_stage_and_part_aligned(logged):
    bars, stream, clock = opened(True)
    with bars:
        work(bars, clock)
        LOGGER.info("day2dusk: 9 MB", extra=DETAIL)
        console = Terminal(file=io.StringIO(), width=80, color_system=None)
        console.print(bars._view._render())
        shown = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in shown[:3]] == ["run", "round", "training"]
    assert len({len(line.rstrip()) for line in (shown[0], shown[2])}) == 1  # their times end below one another
    assert all(len(line) <= 80 for line in shown)
    assert "round 1 of 1" in shown[0]
    assert "0 of 2 parts" in shown[1]
    assert "23,400/46,800" in shown[2]
    assert shown[3].split() == ["loss", "0.4313", "rate", "0.00707", "mIoU", "52.5", "%", "(source)"]
    assert re.search(r"\d\d:\d\d:\d\d  source: mIoU on target 52.5 %", stream.getvalue())  # without the run's name
    assert "9 MB" not in stream.getvalue()  # for the log file alone


def test_a_long_message_is_broken_behind_its_time(logged):
    bars, stream, _ = opened(True)
    with bars:
        LOGGER.warning("day2dusk, round 1: %s", "word " * 30)
    first, *others = [line for line in stream.getvalue().splitlines() if "word" in line]
    assert len(others) >= 2
    assert all(line.startswith(" " * 10 + "word") and len(line) <= 80 for line in others), others


def test_elsewhere_lines_have_an_iso_time_and_do_not_wrap(logged):
    bars, stream, clock = opened(False)
    with bars:
        work(bars, clock)
        LOGGER.warning("day2dusk, round 1: %s", "word " * 30)
    lines = stream.getvalue().splitlines()
    assert all(ISO.match(line) for line in lines)
    told = [ISO.sub("", line) for line in lines]
    assert told[0] == "source: training: begins, 46,800 steps"
    assert told[2].startswith("source: training: 20,000/46,800, "), told
    assert re.search(r", loss 0.4313, rate 0.00707, \S+ left, run > .*left$", told[2])
    assert re.match(r"source: training: 46,800 steps, loss 0.4313, rate 0.00707, done in \S", told[3])
    assert told[-1] == "WARNING round 1: " + "word " * 30


def test_within_a_part_a_line_comes_every_half_minute(logged):
    bars, stream, clock = opened(False)
    with bars:
        for done in range(1, 200):
            clock.now += 1
            bars(PARTS[0].title, done, 46_800)
    lines = [line for line in stream.getvalue().splitlines() if "/46,800" in line]
    assert len(lines) == 199 // 30


def test_work_that_no_run_has_is_told_only_where_it_takes_long(logged):
    stream, clock = io.StringIO(), Clock()
    bars = Bars(Terminal(file=stream, width=80))
    bars.tracker.clock, bars._view._told = clock, 0.0
    with bars:
        bars("pixels", 1, 3)
        assert stream.getvalue() == ""
        clock.now += 31
        bars("pixels", 2, 3)
    assert re.search(r"^\S+ pixels: 2/3, 31.0 s each, 0:00:31 left$", stream.getvalue().strip()), stream.getvalue()


def test_quiet_shows_warnings_only(logged):
    bars, stream, clock = opened(True, quiet=True)
    with bars:
        work(bars, clock)
        LOGGER.warning("day2dusk, round 1: beware")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("WARNING round 1: beware")


# ------------------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_scenes(tmp_path_factory.mktemp("scenes"), source=4, source_val=1, target=3, target_val=2)


SMALL = ("self_training.rounds=1", "network.options.width=0.015625", "source_training.iterations=3")


def call(data, out, *arguments):
    command = ["run", str(tiny.DEMO), "--out", str(out), *tiny.options(*SMALL), *arguments]
    result = CliRunner().invoke(main, command, env={"CBST_DATA": str(data), "COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_as_events(data, tmp_path):
    events = [json.loads(line) for line in call(data, tmp_path / "run", "--json").splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[-2:] == ["summary", "end"]
    assert set(kinds) >= {"parts", "start", "progress", "done", "message", "result"}
    (parts,) = [event["parts"] for event in events if event["event"] == "parts"]
    done = [(event["stage"], event["step"], event["total"]) for event in events if event["event"] == "done"]
    assert [(part["stage"], part["step"], part["total"]) for part in parts] == [
        one for one in done if not one[1].startswith("digests")
    ]
    results = [event for event in events if event["event"] == "result"]
    assert [(one["stage"], one["kind"]) for one in results if one.get("set") != "source"] == [
        (0, "evaluation"), (1, "pseudo-labels"), (1, "evaluation"),
    ]  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert results[0]["miou"] == summary["stages"][0]["evaluation"]["target"]["miou"]
    gain = events[-2]["gain"]
    assert gain["difference"] == pytest.approx(gain["after"] - gain["before"])
    assert events[-1]["complete"] is True


def read_events(folder):
    """Return (tag, step, value) of scalars, and tags of pictures, in the only file of events in a folder."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (file,) = folder.glob("events.*")
    content, place, scalars, pictures = file.read_bytes(), 0, [], []
    while place < len(content):  # length of 8 bytes, its checksum of 4, the record, its checksum of 4
        (length,) = struct.unpack_from("<Q", content, place)
        event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length
        for value in event.summary.value:
            if value.HasField("image"):
                pictures.append(value.tag)
            else:
                scalars.append((value.tag, event.step, value.simple_value))
    return scalars, pictures


def test_tensorboard_events_come_while_a_run_goes_on(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setenv("CBST_DATA", str(data))
    out, events = tmp_path / "run", tmp_path / "events"
    seen = {}  # scalars that are there when a part begins

    def update(view, new):
        before(view, new)
        if new:
            seen[view.tracker.current.part.title.partition(", ")[2]] = {tag for tag, _, _ in read_events(events)[0]}

    before = TensorBoard.update
    monkeypatch.setattr(TensorBoard, "update", update)
    call(data, out, "--tensorboard", str(events))
    assert "training/loss" in seen["source: evaluation on target"]
    assert "target/mIoU" in seen["round 1: pseudo-labels"]
    assert "pseudo-labels/portion" in seen["round 1: training"]
    scalars, pictures = read_events(events)
    summary = json.loads((out / "summary.json").read_text())
    found = {step: value for tag, step, value in scalars if tag == "target/mIoU"}
    expected = {stage["round"]: 100 * stage["evaluation"]["target"]["miou"] for stage in summary["stages"]}
    assert found == pytest.approx(expected, rel=1e-6)  # written as float32
    steps = [step for tag, step, _ in scalars if tag == "training/loss"]
    assert steps == sorted(set(steps))
    assert steps[0] <= 3 < steps[-1] <= 3 + 4  # iterations of the source network, then of the round
    assert any(tag.startswith("pseudo-labels/") for tag in pictures)
    # the finished run again: the same once more, in place of what was there
    call(data, out, "--tensorboard", str(events))
    again, _ = read_events(events)
    assert {(tag, step) for tag, step, _ in again if "mIoU" in tag} == {("target/mIoU", 0), ("target/mIoU", 1)} | {
        (tag, step) for tag, step, _ in scalars if "mIoU" in tag
    }
    assert "training/loss" in {tag for tag, _, _ in again}


def test_the_end_of_a_run_says_gain_thresholds_time_and_the_next_command(data, tmp_path):
    out = tmp_path / "run"
    text = call(data, out, "--quiet")
    assert "source: training" not in text
    assert re.search(
        r"^CBST (gained|lost|neither).* over the source network on target: .*paired over 2 images", text, re.M
    )
    assert "thresholds of round 1: CBST, p = 0.2" in text
    assert re.search(r"^took 0:\d\d:\d\d", text, re.M)
    assert f"next: cbst-mx report {out} --out report.html" in text
    assert "-0.000000" not in text
    again = call(data, out)
    assert "with earlier calls)" in again or "took" in again


def test_a_smoke_test_says_nothing_of_collapses(data, tmp_path):
    text = call(data, tmp_path / "run", "--smoke")
    assert "WARNING" not in text
    assert "warning" not in text


def test_quiet_and_json_exclude_one_another(tmp_path):
    result = CliRunner().invoke(main, ["run", str(tiny.DEMO), "--out", str(tmp_path / "run"), "--quiet", "--json"])
    assert result.exit_code == 2
    assert "--quiet and --json cannot be given together" in result.output
