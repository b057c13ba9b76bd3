"""Videos are read frame by frame and written whole or not at all."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from cbst_mx.data.videos import Video, VideoFile, is_video
from cbst_mx.errors import DataError


def frame(value, size=(48, 64)):
    return np.full((*size, 3), (value, 128, 255 - value), np.uint8)


def test_frames_come_back_in_order_at_the_same_rate(tmp_path):
    with VideoFile(tmp_path / "a.mp4", 29.97) as film:
        for value in range(0, 200, 20):
            film.write(frame(value))
    video = Video(tmp_path / "a.mp4")
    assert (video.frames, video.rate) == (10, pytest.approx(29.97, abs=1e-3))
    frames = [*video]
    assert len(frames) == 10
    for value, one in zip(range(0, 200, 20), frames):
        # the codec keeps flat colours to a few steps of its quantiser; red and blue are not exchanged
        assert np.abs(one.astype(int) - frame(value)).max() <= 8


def test_what_ends_with_an_error_leaves_nothing(tmp_path):
    with pytest.raises(cv2.error), VideoFile(tmp_path / "a.mp4", 25) as film:
        [film.write(one) for one in (frame(0), None)]
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path):
    for value in (0, 200):
        with VideoFile(tmp_path / "a.mp4", 25) as film:
            film.write(frame(value))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert [*Video(tmp_path / "a.mp4")][0][0, 0, 0] > 150


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path):
    left = tmp_path / ".a.mp4.4194305.part.mp4"  # above the largest number of a process
    left.write_bytes(b"half")
    with VideoFile(tmp_path / "a.mp4", 25) as film:
        film.write(frame(0))
        assert not left.exists()
        assert [path.name for path in tmp_path.iterdir()] == [f".a.mp4.{os.getpid()}.part.mp4"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_names_may_be_as_long_as_the_disk_allows(tmp_path):
    paths = [tmp_path / f"{'x' * 240}_{end}.mp4" for end in "ab"]
    with VideoFile(paths[0], 25) as one, VideoFile(paths[1], 25) as other:
        one.write(frame(0))
        other.write(frame(200))
    assert [[*Video(path)][0][0, 0, 0] > 150 for path in paths] == [False, True]


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42" + bytes(100)])
def test_damaged_files_are_one_sentence(tmp_path, content, capfd):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match="a.mp4 cannot be read: it is damaged, or of a kind that FFmpeg"):
        Video(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="does not exist"):
        Video(tmp_path / "b.mp4")
    assert capfd.readouterr().err == ""


def test_endings(tmp_path):
    assert is_video(tmp_path / "A.MP4")
    assert not is_video(tmp_path / "a.gif")
