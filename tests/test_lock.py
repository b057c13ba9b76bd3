"""The lock of a folder: one process works in it, and no killed process leaves it locked."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import RunError
from cbst_mx.labelling import MapFolder
from cbst_mx.labelling import run as label
from cbst_mx.rounds import Run
from cbst_mx.run_dir import RunDir, lock, lock_file, lock_folder
from tests.maps import random_maps, write_maps
from tests.tiny import DEMO, experiment, options, write_scenes

HOLD = "import sys, time; from pathlib import Path; from cbst_mx.run_dir import lock_folder\n"
HOLD += "held = lock_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def other(tmp_path):
    """Return a process that holds the lock of ``run``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def owner(process):
    return f"in use by process {process.pid} on '{socket.gethostname()}'"


def test_a_second_process_is_refused_in_one_sentence(other, tmp_path):
    with pytest.raises(
        RunError, match=r"^run folder .*run is in use by process \d+ on .* \(since .*\): wait"
    ) as refused:
        lock_folder(tmp_path / "run")
    assert owner(other) in str(refused.value)
    with pytest.raises(RunError, match="is in use by process"):
        RunDir.open(tmp_path / "run", "name: x\n", identity={"name": "x"}, inputs={})
    assert os.listdir(tmp_path / "run") == ["lock"]


def test_commands_are_refused_while_another_works(other, tmp_path, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(write_scenes(tmp_path / "data")))
    result = CliRunner().invoke(main, ["run", str(DEMO), "--out", str(tmp_path / "run"), *options()])
    assert result.exit_code == 1
    assert owner(other) in " ".join(result.output.split())
    maps = MapFolder.open(write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5))))
    with pytest.raises(RunError, match=r"^output folder .*run is in use by process"):
        label(maps, tmp_path / "run", policy="global", portion=0.5)
    assert os.listdir(tmp_path / "run") == ["lock"]


@pytest.fixture
def counter(tmp_path):
    """Return a process that counts into ``counts/1.npz``, as its lock says."""
    code = HOLD.replace("lock_folder(Path(sys.argv[1]))", "lock_file(Path(sys.argv[1]), 'state file')")
    command = [
        sys.executable,
        "-c",
        code.replace("import lock_folder", "import lock_file"),
        tmp_path / "counts" / "1.npz",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def count_into(out, maps):
    result = CliRunner().invoke(main, ["label", "count", "--probabilities", str(maps), "--out", str(out)])
    result.exc_info = result.exception = None  # before click 8.2 they keep the frames of an error, and their locks
    gc.collect()
    return result


def test_two_counts_into_one_file_are_refused_and_into_one_folder_are_not(counter, tmp_path):
    maps = write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5)))
    result = count_into(tmp_path / "counts" / "1.npz", maps)
    assert result.exit_code == 1
    assert f"state file {tmp_path / 'counts' / '1.npz'} is {owner(counter)}" in " ".join(result.output.split())
    assert os.listdir(tmp_path / "counts") == [".1.npz.lock"]
    assert count_into(tmp_path / "counts" / "2.npz", maps).exit_code == 0
    counter.kill()
    counter.wait()
    assert count_into(tmp_path / "counts" / "1.npz", maps).exit_code == 0
    assert sorted(os.listdir(tmp_path / "counts")) == ["1.npz", "2.npz"]


def test_a_count_into_the_folder_of_a_job_is_refused_while_the_job_works(tmp_path):
    maps = write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5)))
    label(MapFolder.open(maps), tmp_path / "run", policy="global", portion=0.5)
    before = sorted(os.listdir(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "held\n"
        result = count_into(tmp_path / "run" / "counts.npz", maps)
        process.kill()
    assert result.exit_code == 1
    assert f"output folder {tmp_path / 'run'} is {owner(process)}" in " ".join(result.output.split())
    assert sorted(os.listdir(tmp_path / "run")) == sorted([*before, "lock"])  # of the killed process
    assert count_into(tmp_path / "run" / "counts.npz", maps).exit_code == 0
    assert sorted(os.listdir(tmp_path / "run")) == sorted([*before, "counts.npz"])


def test_a_file_of_the_longest_name_can_be_locked(tmp_path):
    held = lock_file(tmp_path / ("n" * 255), "state file")
    assert [len(name) for name in os.listdir(tmp_path)] == [1 + 32 + len(".lock")]
    held.release()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_no_lock(other, tmp_path, number):
    other.send_signal(number)
    other.wait()
    assert (tmp_path / "run" / "lock").is_file()  # the file is no lock
    held = lock_folder(tmp_path / "run")
    assert str(os.getpid()) in (tmp_path / "run" / "lock").read_text()
    held.release()
    assert os.listdir(tmp_path / "run") == []


def test_a_process_holds_its_folder_once_and_until_it_is_done(tmp_path):
    held = lock_folder(tmp_path)
    assert lock_folder(tmp_path / ".") is held
    probe = [sys.executable, "-c", HOLD.replace("sleep(60)", "sleep(0)"), tmp_path]
    refused = subprocess.run(probe, capture_output=True, text=True)
    assert f"in use by process {os.getpid()}" in refused.stderr
    del held
    gc.collect()
    assert os.listdir(tmp_path) == []
    assert subprocess.run(probe, capture_output=True, text=True).stdout == "held\n"
    assert os.listdir(tmp_path) == []


def test_a_run_gives_its_folder_back_when_it_is_gone(tmp_path):
    data = write_scenes(tmp_path / "data")
    gc.disable()  # else by chance
    try:
        run = Run(experiment(), tmp_path / "run", data_root=data)
        assert (tmp_path / "run" / "lock").is_file()
        del run
        assert not (tmp_path / "run" / "lock").exists()
    finally:
        gc.enable()


def test_a_forked_child_does_not_give_the_lock_back(tmp_path):
    held = lock_folder(tmp_path)
    if not (child := os.fork()):
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == ["lock"]
    assert "in use" in subprocess.run([sys.executable, "-c", HOLD, tmp_path], capture_output=True, text=True).stderr


def test_a_lock_that_was_removed_on_the_way_is_taken_again(tmp_path, monkeypatch):
    # another process gives its lock back, and removes the file, after this one has opened it
    flock, times = lock.fcntl.flock, []

    def removed(descriptor, operation):
        flock(descriptor, operation)
        times.append(descriptor)
        if len(times) == 1:
            (tmp_path / "lock").unlink()

    monkeypatch.setattr(lock.fcntl, "flock", removed)
    held = lock_folder(tmp_path)
    assert len(times) == 2
    assert str(os.getpid()) in held.path.read_text()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"process": "x"}', b"\xff" * 5000])
def test_what_the_file_says_may_be_damaged(tmp_path, other, content):
    (tmp_path / "run" / "lock").write_bytes(content)
    with pytest.raises(RunError, match="is in use by another process: wait for its end, or stop it"):
        lock_folder(tmp_path / "run")


def test_a_file_system_without_locks_is_said_to_have_none(tmp_path, monkeypatch, caplog):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    run = RunDir.open(tmp_path / "run", "name: x\n", identity={"name": "x"}, inputs={})
    assert "the file system has no locks, let no other process work in it" in caplog.text
    assert sorted(os.listdir(run.path)) == ["experiment.yaml", "manifest.json"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"^cannot lock the run folder .*file: "):
        lock_folder(tmp_path / "file")
