"""Files that were cut, altered or exchanged for another run's: noticed and named, or made again, never believed.

After a power cut a file that was just renamed may be a part of itself; disks flip bits; people copy files about.
"""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import CBSTError
from cbst_mx.rounds import Run
from tests import small_runs
from tests.faults import Disk, Killed, attempt, contents, is_temporary

CUTS = ("0", "1", "half", "-1")
FLIPS = tuple(f"flip {seed}" for seed in range(6))
DAMAGES = (*CUTS, *FLIPS, "foreign")
KIND = "cbst-sp"
READERS = (("status",), ("status", "--json"), ("verify",), ("results",), ("results", "--snapshots"), ("diff",))
# What says nothing about results; `lock` is covered by test_lock.
LEFT_OUT = ("log.txt", "lock")


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Return a function that gives a run folder by name: whole, foreign, or stopped on the way."""
    root, known = tmp_path_factory.mktemp("folders"), {}

    def of(name):
        if name not in known:
            out = root / name
            known[name] = out
            if name == "whole":
                small_runs.go(KIND, out, data)
            elif name == "foreign":
                small_runs.go(KIND, out, data, seed=1)
            else:
                stop_at(out, data, name)
        return known[name]

    return of


def stop_at(out, data, what):
    """Make the folder of a run that was killed as it renamed a file the second time in its round."""
    disk = Disk(out, fault="kill")
    place, times = what.split(":")
    seen = []

    def renamed(kind, name, before_death=None, call=disk.call):
        if kind == "rename" and name == place:
            seen.append(name)
            if len(seen) == int(times):
                disk.at = len(disk.calls) + 1
        call(kind, name, before_death)

    disk.call = renamed
    assert isinstance(attempt(lambda: small_runs.go(KIND, out, data), disk), Killed)


def damage(path, what, foreign):
    content = path.read_bytes()
    if what in CUTS:
        length = {"0": 0, "1": 1, "half": len(content) // 2, "-1": len(content) - 1}[what]
        path.write_bytes(content[:length])
    elif what == "foreign":
        path.write_bytes(foreign.read_bytes())
    else:
        rng = np.random.default_rng(int(what.split()[1]))
        changed = bytearray(content)
        changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
    return path.read_bytes() != content


def mentions(text, name):
    """Return whether a text names a file; of the many of a folder the folder, of the ledger's lines the ledger."""
    path = Path(name)
    folder = [path.parent.name] if path.suffix == ".png" else []
    return any(each in text for each in (path.name, path.stem if "ledger" in name else path.name, *folder))


def same(name, one, other):
    """Return whether two contents are the same: bytes, but for what JSON and archives do not need to be read."""
    if one is None or other is None or one == other:
        return one == other
    if name.endswith(".npz"):  # a bit of the archive's own fields
        try:
            arrays = [dict(np.load(io.BytesIO(content), allow_pickle=False)) for content in (one, other)]
        except Exception:  # cut or altered: whatever damaged archives make NumPy raise
            return False
        return arrays[0].keys() == arrays[1].keys() and all(
            np.array_equal(arrays[0][key], arrays[1][key]) for key in arrays[0]
        )
    return name.endswith((".json", ".jsonl")) and one.rstrip() == other.rstrip()


def read(command, folder, whole):
    arguments = [command[0], str(folder), *command[1:]]
    if command[0] == "diff":
        arguments.append(str(whole))
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), (command, repr(result.exception))
    return result.exit_code, result.output.replace(str(folder), "RUN")


def check_readers(folder, whole, name, told):
    """Run the commands that read: they say what they always say, or name the file."""
    spoke = set()
    for command in READERS:
        code, output = read(command, folder, whole)
        if (code, output) != told[command]:
            assert mentions(output, name), (command, output, told[command][1])
            spoke.add(command[0])
    return spoke


def go_on(folder, data, expected, name):
    """Run what is left; the end is the same, or a sentence names the file, or the log does and it is of no use more."""
    error = attempt(lambda: small_runs.go(KIND, folder, data), Disk(folder))
    if error is not None:
        assert isinstance(error, CBSTError), repr(error)
        assert mentions(str(error), name), str(error)
        assert "\n" not in str(error)
        return str(error)
    found = contents(folder)
    other = [each for each in {**expected, **found} if not same(each, found.get(each), expected.get(each))]
    log = (folder / "log.txt").read_text()
    assert other in ([], [name]), (other, log[-2000:])
    assert not other or mentions(log, name), log[-2000:]
    return "left" if other else ""


def named(folder):
    """Return the files of a folder whose damage is tried."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in LEFT_OUT)
    return [path.relative_to(folder).as_posix() for path in found if not is_temporary(path.name)]


def try_damage(state, name, what, folders, data, tmp_path):
    """Damage a file, read the folder and go on in it; return what was said, or None where nothing was changed."""
    base, whole, foreign = folders(state), folders("whole"), folders("foreign") / name
    if what == "foreign" and not foreign.is_file():
        return None
    folder = shutil.copytree(base, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
    try:
        told = {command: read(command, folder, whole) for command in READERS}
        if not damage(folder / name, what, foreign):
            return None
        readers = check_readers(folder, whole, name, told)
        content, original = (folder / name).read_bytes(), (base / name).read_bytes()
        if must_be_verified(name, what) and not same(name, content, original):
            assert "verify" in readers, (name, what)
        refused = go_on(folder, data, contents(whole), name)
        again = re.search(r"run (source|retrain for round (\d+)) again", refused)
        if again:  # the advice works
            run = Run(small_runs.experiment(KIND), folder, data_root=data)
            run.retrain(int(again[2])) if again[2] else run.train_source()
            del run  # gives the lock back
            assert go_on(folder, data, contents(whole), name) == ""
        return refused
    finally:
        shutil.rmtree(folder)


def must_be_verified(name, what):
    """Return whether ``verify`` has to name a file.

    Not checkpoints, which are looked at when they are used, nor digests of the same images from another run.
    """
    return "checkpoint" not in name and (name, what) != ("inputs.json", "foreign")


STATES = ("whole", "round-1/checkpoint.previous.params:2", "round-1/guard.json:1", "source/checkpoint.params:1")


@pytest.mark.parametrize("state", STATES[:2])
def test_a_damaged_file_is_never_believed(state, folders, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(data))
    names = named(folders(state))
    for number in range(1 if state == "whole" else 4, len(names), 6):
        what = DAMAGES[(number // 6 * 3) % len(DAMAGES)]
        try_damage(state, names[number], what, folders, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_no_damage_of_any_file_is_believed(state, folders, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(data))
    tried = 0
    for name in named(folders(state)):
        for what in DAMAGES:
            tried += try_damage(state, name, what, folders, data, tmp_path) is not None
    print(f"{state}: {tried} damages")


# --------------------------------------------------------------------------------------------------- labelling jobs


@pytest.fixture(scope="module")
def job(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("job") / "whole"
    small_runs.go("label", out, data)
    return out


JOB_FILES = ("state.npz", "job.json", "kc.json", "sweep.csv", "image_statistics.npz", "pseudo_labels/0.png")


def damage_job(name, what, job, data, tmp_path):
    """Damage a file of a finished or stopped job and go on: the same end, or a sentence that names the file."""
    for stopped in (False, True):
        folder = shutil.copytree(job, tmp_path / "job", ignore=shutil.ignore_patterns("lock"))
        if stopped:
            (folder / "kc.json").unlink()
        try:
            if not (folder / name).is_file() or not damage(folder / name, what, job / name):
                continue
            error = attempt(lambda folder=folder: small_runs.go("label", folder, data), Disk(folder))
            if error is not None:
                assert isinstance(error, CBSTError), repr(error)
                assert Path(name).name in str(error) or "belongs to another job" in str(error), str(error)
            else:
                found, expected = contents(folder), contents(job)
                assert found.keys() == expected.keys()
                assert all(same(each, found[each], expected[each]) for each in found), (name, what, stopped)
        finally:
            shutil.rmtree(folder)


@pytest.mark.parametrize("name", JOB_FILES)
def test_a_damaged_file_of_a_labelling_job_is_never_believed(name, job, data, tmp_path):
    for what in ("half", "flip 0"):
        damage_job(name, what, job, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOB_FILES)
def test_no_damage_of_any_file_of_a_labelling_job_is_believed(name, job, data, tmp_path):
    for what in (*CUTS, *(f"flip {seed}" for seed in range(40))):
        damage_job(name, what, job, data, tmp_path)


def test_parameters_of_another_run_after_a_round(folders, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(data))
    refused = try_damage("whole", "round-1/parameters.params.json", "foreign", folders, data, tmp_path)
    assert "run retrain for round 1 again" in refused
