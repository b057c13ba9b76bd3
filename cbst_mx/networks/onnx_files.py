"""Networks from ONNX files of ``cbst-mx export``, computed by onnxruntime. B images, C classes, h x w pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cbst_mx.errors import CheckpointError, ConfigError, DataError
from cbst_mx.label_space import LABEL_SPACES, LabelSpace, numbered
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import mx

__all__ = ["OnnxNetwork", "load_onnx"]

_INSTALL = "pip install 'cbst_mx[onnx]' (or 'onnxruntime>=1.15')"
_TRIED = (64, 96)  # pixels; tells the stride where the input's size is free


class OnnxNetwork:
    """An ONNX file that is called as a network is.

    Attributes
    ----------
    stride : int
        Pixels of the input per logit.
    smallest : int
        Rows and columns that the input has at least.
    """

    def __init__(self, path: Path, session: Any):
        self._path, self._session = path, session
        shape = session.get_inputs()[0].shape
        self._fixed = tuple(shape[2:]) if all(isinstance(one, int) for one in shape) else None
        self.smallest = 32
        rows, columns = self._fixed or _TRIED
        logits = self._run(np.zeros((1, 3, rows, columns), np.float32))
        self.num_classes = logits.shape[1]
        self.stride = max(1, round(rows / logits.shape[2]))

    def __call__(self, images: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the logits of images.

        Parameters
        ----------
        images : NDArray of shape (B, 3, h, w), float32
            Normalised.

        Returns
        -------
        NDArray of shape (B, C, ceil(h / stride), ceil(w / stride)), float32

        Raises
        ------
        DataError
            If the file takes images of another size only.
        """
        if self._fixed is not None and tuple(images.shape[2:]) != self._fixed:
            height, width = images.shape[2:]
            raise DataError(
                f"ONNX file {self._path} takes images of {self._fixed[0]} x {self._fixed[1]} only, got {height} x "
                f"{width}: export it without --size"
            )
        values = images.asnumpy()
        if self._fixed is not None:  # one image at a time
            return mx.nd.array(np.concatenate([self._run(values[i : i + 1]) for i in range(len(values))]))
        return mx.nd.array(self._run(values))

    def _run(self, images: np.ndarray) -> np.ndarray:
        name = self._session.get_inputs()[0].name
        return np.asarray(self._session.run(None, {name: np.ascontiguousarray(images)})[0])


def load_onnx(path: Path) -> tuple[OnnxNetwork, NetworkSpec, LabelSpace]:
    """Load an ONNX file that ``cbst-mx export --onnx`` wrote.

    Returns
    -------
    network : OnnxNetwork
    spec : NetworkSpec
        With the normalisation of the input that the file states.
    label_space : LabelSpace
        The classes that the file names; a known label space where they are its, else with colours by number.

    Raises
    ------
    ConfigError
        If onnxruntime is not installed.
    CheckpointError
        If the file is missing, damaged, or states no classes and normalisation.
    """
    if not path.is_file():
        raise CheckpointError(f"ONNX file {path} does not exist")
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path} needs the package onnxruntime, which is not installed: {_INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is told once, by the error
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        network = OnnxNetwork(path, session)
    except Exception as error:  # onnxruntime has no base class of its own errors
        raise CheckpointError(f"ONNX file {path} is damaged, or no network for images: {_first_line(error)}") from error
    stated = session.get_modelmeta().custom_metadata_map
    try:
        names = tuple(stated["classes"].split(","))
        mean, std = (tuple(float(value) for value in stated[key].split(",")) for key in ("mean", "std"))
        if len(names) != network.num_classes or len(mean) != 3 or len(std) != 3:
            raise ValueError(f"{len(names)} names for {network.num_classes} classes")
        spec = NetworkSpec("fcn8s", network.num_classes, {}, mean, std)  # type: ignore[arg-type]
        return network, spec, _space(names)
    except (KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"ONNX file {path} does not state its classes and the normalisation of its input, as files of cbst-mx "
            f"export do ({_first_line(error)})"
        ) from error


def _space(names: tuple[str, ...]) -> LabelSpace:
    known = next((space for space in LABEL_SPACES.values() if space.names == names), None)
    return known or LabelSpace(f"onnx-{len(names)}", names, numbered(len(names)).palette, {})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
