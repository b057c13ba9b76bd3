"""What ``predict`` makes of a label map: files of ids, colours, confidence, overlays, as pictures or as videos."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence, Union

import numpy as np

from cbst_mx.data.description import read_description
from cbst_mx.data.image_files import write_palette_png
from cbst_mx.data.videos import VideoFile
from cbst_mx.errors import ConfigError
from cbst_mx.files import atomic_folder
from cbst_mx.label_space import LABEL_SPACES, LabelSpace
from cbst_mx.report.figures import overlay
from cbst_mx.report.legends import with_legend

__all__ = ["Painter", "VideoOutputs"]

Picture = Union[np.ndarray, "tuple[np.ndarray, bytes]"]

_GREYS = bytes(value for grey in range(256) for value in (grey, grey, grey))


@dataclass
class Painter:
    """Makes the pictures of one call.

    Attributes
    ----------
    outputs : sequence of str
        Which.
    opacity : float
        Of the colours in overlays.
    legend : bool
        Whether overlays have one.
    ids : str
        "trainId", another convention of the network's classes, or the path of a description.
    """

    outputs: Sequence[str]
    opacity: float
    legend: bool
    ids: str
    _coding: LabelSpace | None = None
    _convention: str = "trainId"

    @classmethod
    def of_options(cls, outputs: Sequence[str], options: Mapping[str, Any]) -> Painter:
        """Return the painter for the options of a call; a description is read.

        Raises
        ------
        ConfigError
            If the description cannot be used or has no ids.
        """
        painter = cls(outputs, options["opacity"], options["legend"], options["ids"])
        if painter.ids.lower() == "trainid":
            painter.ids = "trainId"
        elif Path(painter.ids).suffix.lower() in (".yaml", ".yml"):
            painter._coding, painter._convention = read_description(painter.ids).coding()
        else:
            painter._convention = painter.ids
        return painter

    def settings(self, chosen: bool) -> dict[str, Any]:
        """Return what can change a picture, as JSON values, where it is not the default."""
        default = {"opacity": 0.5, "legend": False, "ids": "trainId"}
        found = {key: getattr(self, key) for key in default if getattr(self, key) != default[key]}
        return {**found, **({"outputs": sorted(self.outputs)} if chosen else {})}

    def check(self, classes: LabelSpace) -> None:
        """Refuse ids that are not of a network's classes.

        Raises
        ------
        ConfigError
            If the convention is unknown or the description has other classes.
        """
        if self._coding is not None and self._coding.names != classes.names:
            raise ConfigError(
                f"--ids {self.ids} must describe the classes of the network, {', '.join(classes.names)[:200]}; got "
                f"{', '.join(self._coding.names)[:200]}"
            )
        if self._coding is None and self._convention != "trainId":  # a parameter file has the classes' names alone
            self._coding = next((one for one in LABEL_SPACES.values() if one.names == classes.names), None)
        (self._coding or classes).check_convention(self._convention)

    @property
    def needs_confidence(self) -> bool:
        """Whether probabilities are needed beside labels."""
        return "confidence" in self.outputs

    def pictures(
        self, image: np.ndarray, label: np.ndarray, confidence: np.ndarray | None, classes: LabelSpace
    ) -> dict[str, Picture]:
        """Return the pictures of an image.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            RGB.
        label : ndarray of shape (H, W), uint8
            TrainIds.
        confidence : ndarray of shape (H, W), float32, or None
            Probability of the predicted class, where :attr:`needs_confidence`.
        classes : LabelSpace
            The network's.

        Returns
        -------
        dict of str to ndarray of shape (H, W, 3), uint8, or (ndarray of shape (H, W), uint8, palette)
        """
        made: dict[str, Picture] = {}
        if "label" in self.outputs:
            made["label"] = self._label(label, classes)
        if "colour" in self.outputs:
            made["colour"] = classes.colorize(label)
        if confidence is not None:
            made["confidence"] = (np.rint(255 * np.clip(confidence, 0, 1)).astype(np.uint8), _GREYS)
        if "overlay" in self.outputs:
            shown = overlay(image, label, classes, self.opacity)
            made["overlay"] = with_legend(shown, classes) if self.legend else shown
        return made

    def _label(self, label: np.ndarray, classes: LabelSpace) -> tuple[np.ndarray, bytes]:
        classes.check_train_ids(label)
        if self._convention == "trainId":
            return label, classes.png_palette()
        coding = self._coding or classes
        palette = np.zeros((256, 3), np.uint8)
        every = np.arange(coding.num_classes, dtype=np.uint8)[None]
        palette[coding.decode(every, self._convention)[0]] = classes.palette
        return coding.decode(label, self._convention), palette.tobytes()


class VideoOutputs:
    """The results of a video: all of them are there when the block ends well, none when it does not.

    Parameters
    ----------
    paths : mapping of str to Path
        Where each output is written: a video, or the folder of the labels.
    rate : float
        Frames in a second.
    """

    def __init__(self, paths: Mapping[str, Path], rate: float):
        self._paths, self._rate = paths, rate
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        self._count = 0

    def __enter__(self) -> VideoOutputs:
        with contextlib.ExitStack() as stack:
            for output, path in self._paths.items():
                if output == "label":
                    self._files[output] = stack.enter_context(atomic_folder(path))
                else:
                    self._files[output] = stack.enter_context(VideoFile(path, self._rate))
            self._stack = stack.pop_all()
        return self

    def write(self, pictures: Mapping[str, Picture]) -> None:
        """Write the pictures of one frame, as :meth:`Painter.pictures` makes them."""
        for output, place in self._files.items():
            picture = pictures[output]
            if output == "label":
                write_palette_png(place / f"{self._count:06}.png", *picture)  # type: ignore[misc]
            elif isinstance(picture, tuple):
                place.write(np.frombuffer(picture[1], np.uint8).reshape(-1, 3)[picture[0]])
            else:
                place.write(picture)
        self._count += 1

    def __exit__(self, *error: Any) -> Any:
        return self._stack.__exit__(*error)
