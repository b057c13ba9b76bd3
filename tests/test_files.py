"""Files written whole or not at all, and the boundary to foreign ones."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest

from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.files import atomic_folder, atomic_path, check_free_space, open_npz, read_bounded, reading, save_npz


@pytest.mark.parametrize("name", ["file", "args", "kwds", "self", "arr_0", "allow_pickle", "a b", "Köln"])
def test_arrays_may_have_any_name(tmp_path, name):
    save_npz(tmp_path / "x.npz", {name: np.arange(3), "other": np.ones(2)})
    with open_npz(tmp_path / "x.npz", "archive") as stored:
        np.testing.assert_array_equal(stored[name], np.arange(3))


def test_arrays_are_written_byte_for_byte_as_numpy_writes_them(tmp_path):
    arrays = {"b": np.arange(5000.0).reshape(50, 100), "a": np.array(["x", "yy"]), "c": np.int64(3)}
    expected = io.BytesIO()
    np.savez_compressed(expected, **arrays)
    save_npz(tmp_path / "x.npz", arrays)
    assert (tmp_path / "x.npz").read_bytes() == expected.getvalue()


@pytest.mark.parametrize("length", [1, 240, 255])
def test_every_legal_name_can_be_written(tmp_path, length):
    with atomic_path(tmp_path / ("n" * length)) as temporary:
        assert temporary.parent == tmp_path
        assert str(os.getpid()) in temporary.name
        temporary.write_text("x")
    assert os.listdir(tmp_path) == ["n" * length]


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), RecursionError("deep"), KeyError("k")])
def test_whatever_goes_wrong_is_one_sentence(error):
    with pytest.raises(ConfigError, match="^x.yaml cannot be read: "), reading("x.yaml", ConfigError):
        raise error


def test_own_errors_pass_the_boundary_as_they_are():
    with pytest.raises(DataError, match="^mine$"), reading("x", ConfigError):
        raise DataError("mine")


def test_reading_is_bounded(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bounded(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bounded(tmp_path / "x", 4)


def test_two_writers_of_one_folder_leave_one_of_both_whole(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "x") as first:
        (first / "a").write_text("1")
        monkeypatch.setattr(os, "getpid", os.getppid)  # another process that runs
        with atomic_folder(tmp_path / "x") as second:
            (second / "a").write_text("2")
        monkeypatch.undo()
        assert (first / "a").read_text() == "1"
    assert (tmp_path / "x" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["x"]


def test_a_new_folder_takes_no_others_place(tmp_path):
    def write():
        with atomic_folder(tmp_path / "x", new=True) as folder:
            (folder / "a").write_text("mine")
            (tmp_path / "x").mkdir()
            (tmp_path / "x" / "a").write_text("theirs")

    with pytest.raises(RunError, match=r"^cannot write .*x: "):
        write()
    assert (tmp_path / "x" / "a").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_killed_writer_left_of_a_folder_is_removed(tmp_path):
    (tmp_path / ".x.4194305.part" / "inside").mkdir(parents=True)  # above the largest number of a process
    with atomic_folder(tmp_path / "x"):
        pass
    assert os.listdir(tmp_path) == ["x"]


def test_needed_and_free_space_are_never_told_alike(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7_140_000))
    with pytest.raises(RunError, match=r"about 7\.2 MB are needed, 7\.1 MB are free$"):
        check_free_space(tmp_path, 7_200_000)
    with pytest.raises(RunError, match=r"about 70 MB are needed, 7 MB are free$"):
        check_free_space(tmp_path, 70_000_000)


def test_a_write_that_ended_early_is_told_as_what_it_is(tmp_path):
    def write():
        with atomic_path(tmp_path / "x"):
            raise OSError("38912 requested and 8160 written")  # as NumPy says it

    with pytest.raises(RunError, match=r"^cannot write .*x: not written in full, as on a disk without space \("):
        write()
