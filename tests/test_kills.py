"""kill -9 of real processes at random moments, again and again in one folder, until the command ends by itself."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections import Counter

import pytest

from tests import small_runs
from tests.faults import contents, is_temporary


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


def stage_of(out):
    """Return in what a killed process was, as far as the folder says."""
    if not out.is_dir():
        return "before the folder"
    if (out / "job.json").is_file():
        made = [name for name in ("kc.json", "pseudo_labels", "state.npz") if (out / name).exists()]
        return "label, " + (f"behind {made[0]}" if made else "count")
    ledger = out / "ledger.jsonl"
    lines = ledger.read_text().splitlines() if ledger.is_file() else []
    if not lines:
        return "at the start"
    last = json.loads(lines[-1])
    name = "warm_up" if any(out.glob("source/warm_up*.params")) else last["step"]
    return name if not last["end"] else f"behind {name}"


def survive(kind, kills, rng, server, data, root, stages):
    """Kill the command of a kind so many times, each folder as often as it takes; all end as one that was not."""
    expected, log = None, root / "log"
    number = 0
    while kills > 0:
        number += 1
        out = root / f"{kind}-{number}"
        command = small_runs.command(kind, out, data)
        if expected is None:
            begun = time.monotonic()
            assert server.run(command, log) == 0, log.read_text()
            whole, expected = min(1.5, time.monotonic() - begun), contents(out)  # the first takes longer than others
            continue
        for _ in range(min(3, kills)):  # later ones would come to a folder in which everything is done
            code = server.run(command, log, kill_after=rng.uniform(0, whole))
            if code != -signal.SIGKILL:
                assert code == 0, log.read_text()
                break
            kills -= 1
            stages[stage_of(out)] += 1
        assert server.run(command, log) == 0, log.read_text()
        found = contents(out)
        assert [name for name in found if is_temporary(name)] == []
        assert sorted(found) == sorted(expected)
        assert [name for name in expected if found[name] != expected[name]] == []
        shutil.rmtree(out)
    assert "Traceback" not in log.read_text()


def test_killed_runs_end_as_one_that_was_not(server, data, tmp_path):
    rng, stages = random.Random(0), Counter()
    survive("cbst-sp", 3, rng, server, data, tmp_path, stages)
    survive("label", 1, rng, server, data, tmp_path, stages)
    assert sum(stages.values()) == 4


def test_processes_that_end_within_a_call_go_on(server, data, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    command = small_runs.command("st", out, data)
    codes = [server.run(command, log, root=out, exit_at=at) for at in (3, 40, 60)]
    assert codes == [137] * 3, log.read_text()
    assert server.run(command, log) == 0, log.read_text()
    assert server.run(small_runs.command("st", tmp_path / "whole", data), log) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_ninety_kills_over_all_kinds(server, data, tmp_path):
    rng, stages = random.Random(13), Counter()
    for kind in small_runs.ALL:
        survive(kind, 15, rng, server, data, tmp_path, stages)
    assert sum(stages.values()) == 90
    print(json.dumps(stages, indent=2, sort_keys=True))
    assert len(stages) >= 10
