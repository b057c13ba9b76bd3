"""Faults by number: the n-th call that reaches the disk fails, n = 1, 2, 3, ..., and the same command then goes on.

After each the same command ends with the bytes of a run that nothing happened to, and leaves no temporary file.
"""

from __future__ import annotations

import os
import shutil

import pytest

from cbst_mx.errors import CBSTError
from tests import small_runs
from tests.faults import FAULTS, Disk, Killed, attempt, contents, is_temporary, places

REASONS = ("no space left on the disk", *map(os.strerror, (5, 13, 28)), "MXNet could not write", "read back")
# Files whose absence or cut the next command sees by itself; all others are whole or not there.
GROWING = ("log.txt", "lock", "inputs.json", "manifest.json", "ledger.jsonl", "experiment.yaml")
GROWING += ("state.npz", "job.json")


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Return a function that gives the files of a kind of run that nothing happened to, and its calls."""
    known = {}

    def of(kind):
        if kind not in known:
            out = tmp_path_factory.mktemp("whole") / "run"
            disk = Disk(out)
            assert attempt(lambda: small_runs.go(kind, out, data), disk) is None
            known[kind] = contents(out), disk.calls
        return known[kind]

    return of


def fail(kind, data, out, at, fault, expected):
    """Let one call fail, look at what is said and left, and go on; return the call, or None where there are fewer."""
    disk = Disk(out, at, fault)
    error = attempt(lambda: small_runs.go(kind, out, data), disk)
    if disk.fired is None:
        assert error is None
        return None
    where = f"{kind}, call {at}, {fault} at {disk.fired}"
    if error is not None and not isinstance(error, Killed):
        assert isinstance(error, CBSTError), (where, repr(error))
        assert "\n" not in str(error), where
        assert any(reason in str(error) for reason in REASONS), (where, str(error))
        assert str(out) in str(error), (where, str(error))
    for name, content in contents(out, GROWING).items():
        if name in expected and not is_temporary(name):  # nothing is half-written
            assert content == expected[name], (where, name)
    after = attempt(lambda: small_runs.go(kind, out, data), Disk(out))
    assert after is None, (where, str(error), repr(after))
    found = contents(out)
    assert [name for name in found if is_temporary(name)] == [], where
    assert sorted(found) == sorted(expected), where
    assert [name for name in expected if found[name] != expected[name]] == [], where
    return disk.fired


@pytest.mark.parametrize("kind", small_runs.ALL)
def test_a_call_that_fails_costs_no_byte(kind, data, whole, tmp_path):
    expected, calls = whole(kind)
    for number, at in enumerate(places(len(calls), {"label": 7, "cbst-sp": 3}.get(kind, 2))):
        fault = FAULTS[(number + small_runs.ALL.index(kind)) % len(FAULTS)]
        assert fail(kind, data, tmp_path / str(at), at, fault, expected)
        shutil.rmtree(tmp_path / str(at))


def test_what_the_guard_has_judged_cannot_be_read(data, whole, tmp_path):
    expected, calls = whole("st")
    wanted = ("open", "round-1/image_statistics.npz")
    numbers = [number for number, call in enumerate(calls, 1) if call == wanted]
    assert len(numbers) > 2  # the ledger reads it, the guard, and whoever looks whether it is what the guard has judged
    for at in numbers[2:4]:
        assert fail("st", data, tmp_path / str(at), at, "EIO", expected) == wanted


def test_a_snapshot_shows_what_it_ends_with_from_the_first_on(data, whole, tmp_path):
    expected, calls = whole("cbst-sp")
    at = 1 + calls.index(("rename", "source/snapshots/epoch-1/confusion.npz"))
    assert fail("cbst-sp", data, tmp_path / "run", at, "EIO", expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", small_runs.ALL)
def test_every_call_that_fails_costs_no_byte(kind, data, whole, tmp_path):
    # CBST_FAULTS=all lets every call fail in every way; else the ways take turns
    expected, _ = whole(kind)
    at, tried, fired = 1, 0, True
    while fired:
        turn = FAULTS[(at + small_runs.ALL.index(kind)) % len(FAULTS)]
        for fault in FAULTS if os.environ.get("CBST_FAULTS") == "all" else (turn,):
            fired = fail(kind, data, tmp_path / "run", at, fault, expected)
            shutil.rmtree(tmp_path / "run")
            tried += bool(fired)
        at += 1
    print(f"{kind}: {tried} faults")
    assert tried > 50
