"""Which file has the network that a user means: a parameter file, an ONNX file, a run folder or one of its rounds."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.errors import RunError
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.outputs import Outputs

__all__ = ["trained_network"]


def trained_network(path: Path) -> tuple[Path, str]:
    """Find a network.

    Parameters
    ----------
    path : Path
        A file, which is taken as it is; the folder of a round or of the source network; a run folder, of which the last
        round that is trained is taken; or a folder of ``cbst-mx export`` with an ONNX file.

    Returns
    -------
    file : Path
        Parameters or ONNX file.
    said : str
        Which network of a run that is, in words; empty for a file.

    Raises
    ------
    RunError
        If a folder has no network, or its file is not what the run wrote.
    """
    if not path.is_dir():
        return path, ""
    if (path / "parameters.params").is_file():
        return path / "parameters.params", ""
    run = RunDir(path)
    rounds = sorted((_number(one) for one in path.glob("round-*") if _number(one)), reverse=True)
    for index in (*rounds, 0):
        file = run.stage(index).parameters
        if file.is_file():
            Outputs(run).check(file)
            whose = f"of round {index}" if index else "of the source training, before any round"
            return file, f"network {whose} of {path}"
    exported = sorted(path.glob("*.onnx"))
    if len(exported) == 1:
        return exported[0], ""
    raise RunError(
        f"{path} has no trained network: give a run folder, the folder of a round (with parameters.params), a .params "
        "file or an ONNX file"
    )


def _number(folder: Path) -> int:
    number = folder.name[len("round-") :]
    return int(number) if number.isdecimal() and len(number) < 7 else 0
