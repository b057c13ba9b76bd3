"""The records of a run folder, each looked at before it is believed: names, kinds and lengths of what it holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Sequence

import numpy as np

from cbst_mx.errors import DataError, RunError
from cbst_mx.evaluation.protocols import ImageMatrices
from cbst_mx.files import open_npz, read_mapping, reading
from cbst_mx.selftrain.signs import ADVICE
from cbst_mx.selftrain.thresholds import Thresholds

__all__ = [
    "as_thresholds",
    "check_judgement",
    "read_evaluation",
    "read_label_free",
    "read_matrices",
    "read_thresholds",
    "told_signs",
]

Read = Callable[[Path], Dict[str, Any]]  # reads a file of names and values


def read_evaluation(path: Path, read: Read = read_mapping) -> dict[str, Any]:
    """Read ``evaluation.json``: by validation set IoU in [0, 1] or None by class, and their mean.

    Raises
    ------
    RunError
        If it is missing, damaged, or something else.
    """
    found = read(path)
    for result in found.values():
        if not isinstance(result, dict):
            raise RunError(f"{path} is no evaluation: a validation set must have iou and miou")
        iou, mean = result.get("iou"), result.get("miou")
        if not isinstance(iou, dict) or not all(value is None or _is_share(value) for value in iou.values()):
            raise RunError(f"{path} is no evaluation: a validation set must have iou")
        if not _is_share(mean):
            raise RunError(f"{path} is no evaluation: a validation set must have miou")
    return found


def read_thresholds(path: Path, read: Read = read_mapping) -> dict[str, Any]:
    """Read ``thresholds.json``, of which lists by class have one length.

    Raises
    ------
    RunError
        If it is missing, damaged, or something else.
    """
    found = read(path)
    lists: dict[str, Callable[[Any], bool]] = {
        "names": _is_text,
        "threshold": lambda value: value is None or _is_number(value),
        **dict.fromkeys(("count", "kept", "predicted"), _is_count),
    }
    _expect_lists(found, lists, path, "record of pseudo-labels")
    texts = [found.get(key) for key in ("policy", "fidelity", "method")]
    if not all(map(_is_text, texts)) or not _is_number(found.get("portion")):
        raise RunError(f"{path} is no record of pseudo-labels: it must have policy, fidelity, method and portion")
    return found


def as_thresholds(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the thresholds of a record of :func:`read_thresholds` as :meth:`.RunResults.thresholds` gives them.

    Raises
    ------
    RunError
        If they do not fit together; the sentence names `path`.
    """
    with reading(path, RunError):
        values = [math.inf if value is None else value for value in record["threshold"]]
        found = Thresholds(
            record["policy"],
            record["fidelity"],
            float(record["portion"]),
            np.array(values, dtype=np.float32),
            np.array(record["count"], dtype=np.int64),
        )
        return {
            "portion": found.portion,
            "policy": record["method"],
            "fidelity": found.fidelity,
            "names": tuple(record["names"]),
            "values": found.values,
            "k": found.k,
            "counts": found.counts,
            "kept": np.array(record["kept"], dtype=np.int64),
            "predicted": np.array(record["predicted"], dtype=np.int64),
        }


def read_matrices(path: Path, evaluation: Path, names: Sequence[str]) -> dict[str, ImageMatrices]:
    """Read the confusion matrices of the sets that an evaluation has.

    Raises
    ------
    RunError
        If the two files do not fit together.
    DataError
        If ``confusion.npz`` is damaged.
    """
    with open_npz(path, "file of confusion matrices") as stored:
        arrays = dict(stored)
    sets = {}
    try:
        for name in names:
            classes, images = (tuple(map(str, arrays[f"{name}.{key}"])) for key in ("classes", "images"))
            sets[name] = ImageMatrices(classes, images, arrays[name])
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise RunError(f"{path} and {evaluation} do not fit together: {error}") from error
    return sets


def read_label_free(path: Path, read: Read = read_mapping) -> dict[str, Any]:
    """Read ``label_free.json``, of which lists by class have one length.

    Raises
    ------
    RunError
        If it is missing, damaged, or something else.
    """
    found = read(path)
    lists = {"names": _is_text, "predicted": _is_count, "share": _is_share}
    _expect_lists(found, lists, path, "record of predictions")
    if not _is_count(found.get("images")) or not all(
        key in found and (found[key] is None or _is_number(found[key]))
        for key in ("mean_confidence", "moved", "moved_since_source")
    ):
        raise RunError(f"{path} is no record of predictions: it must have images, mean_confidence and moved")
    return found


def check_judgement(found: Mapping[str, Any], path: Path) -> None:
    """Refuse a judgement of the guard whose signs have no kind and sentence.

    Raises
    ------
    RunError
        If that is so; the sentence names `path`.
    """
    signs = found.get("signs")
    if not isinstance(signs, list) or not all(
        isinstance(sign, dict) and _is_text(sign.get("kind")) and _is_text(sign.get("sentence")) for sign in signs
    ):
        raise RunError(f"{path} is no judgement of the guard: its signs must have kind and sentence")


def told_signs(judged: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return kind and text of every sign of a judgement, with the advice, which earlier versions did not write."""
    told = []
    for sign in judged.get("signs", ()):
        advice = ADVICE.get(sign["kind"])
        told.append((sign["kind"], f"{sign['sentence']}; {advice}" if advice else sign["sentence"]))
    return told


def _expect_lists(record: Mapping[str, Any], lists: Mapping[str, Callable[[Any], bool]], path: Path, what: str) -> None:
    """Refuse a record whose lists are not of one length, or hold something else."""
    found = {key: record.get(key) for key in lists}
    for key, fits in lists.items():
        values = found[key]
        if not isinstance(values, list) or not values or not all(map(fits, values)):
            raise RunError(f"{path} is no {what}: it must have {key!r}, a list with an entry per class")
    if len({len(values) for values in found.values() if values is not None}) != 1:
        raise RunError(f"{path} is no {what}: {', '.join(lists)} must have the same length")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1 + 1e-6


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53
