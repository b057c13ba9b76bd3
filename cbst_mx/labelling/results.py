"""What a labelling job leaves: the sweep table, and whether everything is there already."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from cbst_mx.errors import RunError
from cbst_mx.files import in_one_line, read_bounded, read_json
from cbst_mx.labelling.map_folder import MapFolder
from cbst_mx.run_dir.ledger import output_record
from cbst_mx.selftrain.thresholds import Thresholds

__all__ = ["LABELS", "digests", "finished", "sweep_rows", "sweep_text"]

LABELS = "pseudo_labels"  # folder in the output folder

_LARGEST_SWEEP = 64 << 20  # bytes of a table of portions
_RECORD: dict[str, Any] = {"policy": str, "fidelity": str, "portion": (int, float), "kept_portion": (int, float)}
_PER_CLASS: dict[str, Any] = {
    **{"names": str, "count": int, "kept": int},
    **{key: (int, float, type(None)) for key in ("threshold", "kc")},
}
_COLUMNS = ("portion", "train_id", "name", "count", "threshold", "kc", "kept")


def sweep_rows(thresholds: Sequence[Thresholds], kept: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the sweep table: one row per portion and class.

    Parameters
    ----------
    thresholds : sequence of Thresholds
        One per portion.
    kept : ndarray of shape (len(thresholds), C), int64
        Pixels of each pseudo-label class.
    names : sequence of str
        C class names.

    Returns
    -------
    list of dict
        ``portion``, ``train_id``, ``name``, ``count`` (N_c), ``threshold``, ``kc`` (None where nothing may be kept) and
        ``kept``.
    """
    rows = []
    for chosen, counts in zip(thresholds, kept):
        record = chosen.to_json()
        for index, name in enumerate(names):
            values = (chosen.portion, index, name, *(record[key][index] for key in _COLUMNS[3:6]), int(counts[index]))
            rows.append(dict(zip(_COLUMNS, values)))
    return rows


def sweep_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a sweep table as the text of ``sweep.csv``."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of what a job has written into its output folder, by name; of the labels one over all.

    Raises
    ------
    RunError
        If something cannot be read.
    """
    paths = [out / name for name in ("kc.json", "sweep.csv", "image_statistics.npz", LABELS)]
    try:
        return {path.name: output_record(path)["sha256"] for path in paths if path.exists()}
    except OSError as error:
        raise RunError(f"{error.filename} cannot be read: {in_one_line(error)}") from error


def finished(folder: MapFolder, out: Path, portion: float | None, portions: Sequence[float]) -> dict[str, Any] | None:
    """Return what a finished job has made, as :func:`.job.run` does; None where one of its files is missing or damaged.

    The caller has compared their digests.

    Parameters
    ----------
    folder : MapFolder
    out : Path
        Output folder.
    portion : float, optional
        p of the pseudo-labels; None where none are wanted.
    portions : sequence of float
        Portions of the sweep table.
    """
    wanted = [out / "sweep.csv"] if portions else []
    if portion is not None:
        wanted += [out / "kc.json", *(out / "pseudo_labels" / f"{name}.png" for name in folder.names)]
    if not all(path.is_file() and path.stat().st_size for path in wanted):
        return None
    try:
        record = {} if portion is None else _checked(read_json(out / "kc.json"), folder.num_classes)
        rows = _read_sweep(out / "sweep.csv") if portions else []
        if len(rows) != len(portions) * folder.num_classes:
            raise ValueError("rows are missing")
    except Exception:  # whatever a damaged file leads to: it is made again
        return None
    return {**record, "sweep": rows}


def _checked(record: Any, num_classes: int) -> dict[str, Any]:
    """Return a record; refuse one that is not what this job writes."""
    for key, types in _RECORD.items():
        if not isinstance(record[key], types):
            raise TypeError(key)
    for key, types in _PER_CLASS.items():
        values = record[key]
        if not isinstance(values, list) or len(values) != num_classes or not all(isinstance(v, types) for v in values):
            raise TypeError(key)
    if not all(isinstance(sentence, str) for sentence in record.get("remarks", ())):
        raise TypeError("remarks")
    return record


def _read_sweep(path: Path) -> list[dict[str, Any]]:
    types: dict[str, Callable[[str], Any]] = {"train_id": int, "name": str, "count": int, "kept": int}
    with io.StringIO(read_bounded(path, _LARGEST_SWEEP).decode("utf-8"), newline="") as stream:
        return [
            {key: types.get(key, float)(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(stream)
        ]
