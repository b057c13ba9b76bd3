"""Run folders and atomic files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from cbst_mx import files
from cbst_mx.errors import RunError
from cbst_mx.labelling import MapFolder, State, count
from cbst_mx.labelling import run as label
from cbst_mx.run_dir import RunDir, folder
from tests.maps import random_maps, write_maps

IDENTITY = {"name": "x", "seed": 0}


def opened(path, **identity):
    return RunDir.open(path, "name: x\n", identity={**IDENTITY, **identity}, inputs={"images": 3})


def test_a_folder_is_made_and_continued(tmp_path):
    run = opened(tmp_path / "a" / "run")
    manifest = json.loads(run.manifest.read_text())
    assert manifest["name"] == "x"
    assert manifest["inputs"] == {"images": 3}
    assert manifest["versions"]["numpy"] == np.__version__
    assert run.experiment.read_text() == "name: x\n"
    before = run.manifest.read_bytes()
    assert opened(run.path).config_hash == manifest["config_sha256"]
    assert run.manifest.read_bytes() == before
    assert run.stage(0).parameters.name == "parameters.params"
    assert run.stage(3).path.name == "round-3"


def test_the_log_file_has_what_the_package_says_once(tmp_path):
    run = opened(tmp_path / "run")
    package = logging.getLogger("cbst_mx")
    before = package.level, list(package.handlers)
    with run.logging(), run.logging():  # a step inside a run
        logging.getLogger("cbst_mx.rounds").info("inside")
        logging.getLogger("other").warning("of another package")
    logging.getLogger("cbst_mx.rounds").warning("after")
    lines = run.log.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(" INFO inside")
    assert (package.level, package.handlers) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_archive_on_a_full_disk_is_one_error_and_no_traceback(tmp_path):
    code = """
import contextlib, sys
from pathlib import Path
import numpy as np
from cbst_mx import files
from cbst_mx.errors import RunError
from cbst_mx.labelling import MapFolder
from cbst_mx.labelling import run as label

@contextlib.contextmanager
def full(path):
    try:
        yield Path("/dev/full")
    except OSError as error:
        raise RunError("no space") from error

files.atomic_path = full
try:
    files.save_npz(Path("x.npz"), {"a": np.random.default_rng(0).random(100_000)})
except RunError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "no space\n"
    assert not result.stderr


def test_another_runs_folder_and_foreign_folders_are_refused(tmp_path):
    run = opened(tmp_path / "run")
    with pytest.raises(RunError, match=r"output folder .*run belongs to another run \(experiment 'x', "):
        opened(run.path, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="is not empty and not a run folder: give a new or empty folder"):
        opened(tmp_path / "other")
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]
    with pytest.raises(RunError, match="is not empty and not a run folder"):
        opened(tmp_path / "other" / "thesis.txt")


def test_what_killed_writers_left_is_removed_and_what_is_being_written_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".experiment.yaml.{dead.pid}.part").write_text("")  # killed at its first file: still empty
    run = opened(tmp_path / "run")
    run.stage(1).pseudo_labels.mkdir(parents=True)
    left = [f".summary.json.{dead.pid}.part", f"round-1/pseudo_labels/.a.png.{dead.pid}.part"]
    stay = [f"round-1/.thresholds.json.{os.getpid()}.part", ".notes.part", f"notes.{dead.pid}.part"]
    for name in left + stay:
        (run.path / name).write_text("")
    opened(run.path)
    assert [name for name in left + stay if (run.path / name).exists()] == stay
    job, maps = tmp_path / "job", MapFolder.open(write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5))))
    job.mkdir()
    (job / f".job.json.{dead.pid}.part").write_text("")
    for _ in range(2):
        label(maps, job, policy="global", portion=0.5)
        assert not list(job.rglob("*.part"))
        (job / "pseudo_labels" / f".image-0.png.{dead.pid}.part").write_text("")


@pytest.mark.parametrize("written", [(), ("manifest.json",), ("experiment.yaml",)])
@pytest.mark.parametrize("part", [None, "manifest.json", "experiment.yaml"])
def test_a_run_killed_at_its_first_moment_goes_on(tmp_path, written, part):
    whole = opened(tmp_path / "whole")
    path = tmp_path / "run"
    path.mkdir()
    for name in written:
        (path / name).write_bytes((whole.path / name).read_bytes())
    if part is not None:
        for process in (2**22 + 1, os.getpid()):  # above the largest number of a process; the number given out again
            (path / f".{part}.{process}.part").write_text("")
    run = opened(path)
    assert sorted(os.listdir(path)) == ["experiment.yaml", "lock", "manifest.json"]  # locked while `run` is there
    assert run.experiment.read_bytes() == whole.experiment.read_bytes()
    assert run.config_hash == whole.config_hash
    assert opened(path).path == path


def test_the_folder_is_this_runs_before_anything_else_is_in_it(tmp_path, monkeypatch):
    def killed(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path / "run")
    assert set(os.listdir(tmp_path / "run")) - {"lock"} == {"manifest.json"}
    with pytest.raises(RunError, match="belongs to another run"):
        opened(tmp_path / "run", seed=1)
    assert opened(tmp_path / "run").experiment.read_text() == "name: x\n"


def test_an_experiment_that_somebody_put_there_is_not_overwritten(tmp_path):
    for number, content in enumerate((b"name: y\n", b"name: x", b"name: x\n# mine\n", b"\xff")):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "experiment.yaml").write_bytes(content)
        with pytest.raises(RunError, match="is not empty and not a run folder"):
            opened(path)
        assert (path / "experiment.yaml").read_bytes() == content
        assert os.listdir(path) == ["experiment.yaml"]
    (path / "experiment.yaml").write_text("name: x\n")
    (path / "more").write_text("")
    with pytest.raises(RunError, match="is not empty and not a run folder"):
        opened(path)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "3", '{"name": "x"}', "", "{"])
def test_a_manifest_of_something_else_is_one_sentence(tmp_path, content):
    run = opened(tmp_path / "run")
    run.manifest.write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json (is no record of a run|cannot be read)"):
        opened(run.path)
    assert run.manifest.read_text() == content


def test_a_labelling_job_killed_at_its_first_moment_goes_on(tmp_path):
    maps = MapFolder.open(write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5))))
    whole = tmp_path / "whole"
    label(maps, whole, policy="global", portion=0.5)
    for number, content in enumerate(([], ["job.json"])):
        for part in ((), (2**22 + 1, os.getpid())):
            path = tmp_path / f"job-{number}-{len(part)}"
            path.mkdir()
            for name in content:
                (path / name).write_bytes((whole / name).read_bytes())
            for process in part:
                (path / f".job.json.{process}.part").write_text("")
            label(maps, path, policy="global", portion=0.5)
            names = [sorted(file.relative_to(top) for file in top.rglob("*")) for top in (whole, path)]
            assert names[0] == names[1]
            for name in names[0]:
                if (whole / name).suffix in (".json", ".png"):
                    assert (path / name).read_bytes() == (whole / name).read_bytes()


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        files.write_json(path, {"a": float("nan")})

    def stop_half_way():
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_half_way()
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_reading_what_is_not_there_or_damaged(tmp_path):
    with pytest.raises(RunError, match="does not exist: the stage that writes it has not been run"):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunError, match="x.json cannot be read"):
        files.read_json(tmp_path / "x.json")


def test_npz_round_trip(tmp_path):
    files.save_npz(tmp_path / "x.npz", {"a": np.arange(5)})
    with np.load(tmp_path / "x.npz") as stored:
        np.testing.assert_array_equal(stored["a"], np.arange(5))


def test_free_space_is_checked_before_the_start(tmp_path):
    files.check_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(
        RunError, match=r"not enough disk space for the run folder .*: about 1000000000 MB are needed, \d+ MB are free"
    ):
        files.check_free_space(tmp_path / "not" / "yet", 10**15)
    with pytest.raises(RunError, match=r"not enough disk space for the output folder .*yet: about"):
        files.check_free_space(tmp_path / "not" / "yet", 10**15, what="output folder")


def test_a_labelling_job_names_its_own_folder(tmp_path, monkeypatch):
    maps = MapFolder.open(write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5))))
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(RunError, match=r"^not enough disk space for the output folder .*job: about"):
        label(maps, tmp_path / "job", policy="global", portion=0.5)
    with pytest.raises(RunError, match=r"^not enough disk space for the folder of counts .*: about"):
        count(maps, State.new(maps, "paper"), tmp_path / "state.npz")
    assert not (tmp_path / "job").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    # a limit on the size of files stands for the full disk: writing fails half way in the same place
    code = (
        "import resource, signal, sys; from cbst_mx import files; from cbst_mx.errors import RunError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_json(sys.argv[1], list(range(10000)))\n"
        "except RunError as error: print(error)\n"
    )
    path = tmp_path / "x.json"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: no space left on the disk\n"
    assert list(tmp_path.iterdir()) == []
