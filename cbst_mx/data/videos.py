"""Videos as their frames, one after the other, and written back at the same rate; OpenCV's FFmpeg does the coding.

Frames are uint8 RGB of shape (H, W, 3). No more of them are in memory than the caller keeps.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Iterator

import cv2
import numpy as np

from cbst_mx.errors import DataError, RunError
from cbst_mx.files import atomic_path, make_folder, part_path, remove_file, remove_leftovers, replace_file

__all__ = ["ENDINGS", "Video", "VideoFile", "is_video"]

#: Endings of the files that are read as videos.
ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts")

# FFmpeg's AV_LOG_QUIET, read when it is first used: what is wrong is told by errors
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_CODEC = "mp4v"  # MPEG-4 part 2: what OpenCV's wheels write everywhere


def is_video(path: Path) -> bool:
    """Return whether a file has the ending of a video."""
    return path.suffix.lower() in ENDINGS


def _opened(path: Path) -> cv2.VideoCapture:
    """Return a file as OpenCV opens it, whether it could or not; neither it nor FFmpeg writes to the terminal."""
    level = cv2.setLogLevel(0)  # silent; gives the level before
    try:
        return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    finally:
        cv2.setLogLevel(level)


class Video:
    """Frames of a video file, turned as the file says.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    rate : float
        Frames in a second.
    frames : int
        How many the file says it has; it may have fewer.

    Raises
    ------
    DataError
        If it does not exist or cannot be read as a video.
    """

    def __init__(self, path: Path):
        self._path = path
        if not path.is_file():
            raise DataError(f"video {path} does not exist")
        self._stream = _opened(path)
        self.rate = float(self._stream.get(cv2.CAP_PROP_FPS)) if self._stream.isOpened() else 0.0
        if not (math.isfinite(self.rate) and self.rate > 0):
            self._stream.release()
            raise DataError(f"video {path} cannot be read: it is damaged, or of a kind that FFmpeg in OpenCV lacks")
        self.frames = max(0, int(self._stream.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames.

        Yields
        ------
        ndarray of shape (H, W, 3), uint8
            RGB.

        Raises
        ------
        DataError
            If there is none, or the file ends before the number that it states by more than containers err.
        """
        count = 0
        try:
            while True:
                there, frame = self._stream.read()
                if not there:
                    break
                count += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._stream.release()
        if count == 0 or count < 0.98 * self.frames - 1:
            raise DataError(
                f"video {self._path} cannot be read to its end, the file is damaged or truncated: {count:,} of "
                f"{self.frames:,} frames"
            )


class VideoFile:
    """A video that is written frame by frame; it gets its name when the block ends well and vanishes when it does not.

    OpenCV leaves the last row and column away where height and width are odd.

    Parameters
    ----------
    path : Path
        An .mp4 file; one that is there is replaced.
    rate : float
        Frames in a second.

    Raises
    ------
    RunError
        If it cannot be written.
    """

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, rate
        self._part = part_path(path, path.suffix)  # FFmpeg knows the container by the ending
        self._stream: cv2.VideoWriter | None = None

    def __enter__(self) -> VideoFile:
        make_folder(self._path.parent)
        remove_leftovers(self._path.parent, self._path.name)  # of a process that was killed
        return self

    def write(self, frame: np.ndarray) -> None:
        """Write a frame.

        Parameters
        ----------
        frame : ndarray of shape (H, W, 3), uint8
            RGB, of the size of the others.
        """
        if self._stream is None:
            size = (frame.shape[1], frame.shape[0])
            codec = cv2.VideoWriter_fourcc(*_CODEC)  # type: ignore[attr-defined]
            self._stream = cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, codec, self._rate, size)
            if not self._stream.isOpened():
                raise RunError(f"cannot write {self._path}: OpenCV has no encoder for it, or the disk refuses")
        self._stream.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if self._stream is not None:
                self._stream.release()
            if kind is None and self._stream is not None:
                self._check()
                with atomic_path(self._path) as temporary:
                    replace_file(self._part, temporary)
        finally:
            remove_file(self._part)

    def _check(self) -> None:
        """Read the file's head back: a full disk is no error of FFmpeg's."""
        stream = _opened(self._part)
        there = stream.isOpened() and stream.read()[0]
        stream.release()
        if not there:
            raise RunError(f"cannot write {self._path}: what was written cannot be read back (is the disk full?)")
