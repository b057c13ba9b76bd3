"""The labelling job: counts, thresholds and pseudo-labels of a folder of class maps, in one or several processes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from cbst_mx.data.image_files import read_label, write_label_png
from cbst_mx.errors import CBSTError, ConfigError, DataError, RunError, StoppedError
from cbst_mx.files import check_free_space, read_json, remove_leftovers, write_json, write_text
from cbst_mx.labelling.map_folder import MapFolder
from cbst_mx.labelling.results import LABELS, digests, finished, sweep_rows, sweep_text
from cbst_mx.labelling.state import State
from cbst_mx.labelling.workers import Workers, check_workers
from cbst_mx.messages import Progress, Shares, counted, silent
from cbst_mx.run_dir import LOCK, Lock, lock_file, lock_folder
from cbst_mx.run_dir.links import check_links
from cbst_mx.selftrain import selection
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import LOWER, StreamingThresholds
from cbst_mx.selftrain.selection import PIXEL_BYTES, Kept, Labelling, Needs
from cbst_mx.selftrain.thresholds import Thresholds, check_fidelity, check_policy

__all__ = ["check_request", "count", "needs", "run"]

_CHECKPOINT = 60.0  # seconds
_JOB = "job.json"  # what a job is, in its output folder
_MOST_PORTIONS = 100


def _count_block(
    folder: MapFolder, template: StreamingThresholds
) -> tuple[StreamingThresholds, ImageStatistics | None, CBSTError | None]:
    """Count some images; return their counts, in the first step their statistics, and what stopped it on the way."""
    part = template.part()
    statistics = None if part.refining else ImageStatistics(folder.num_classes)
    for index, name in enumerate(folder.names):
        try:
            selection.collect(name, folder.view(index), part, statistics)
        except CBSTError as error:
            return part, statistics, error
        except MemoryError:
            return part, statistics, _too_large(folder, index)
    return part, statistics, None


def _too_large(folder: MapFolder, index: int) -> RunError:
    height, width = folder.sizes[index]
    return RunError(
        f"{folder.paths[index]} needs more memory than there is: {counted(folder.num_classes, 'class')} of {height} x "
        f"{width} pixels; give fewer workers, a smaller upsample, or cut it into parts"
    )


class _StoredLabel:
    """A label that this job wrote before it was stopped, in place of the image it is of."""

    def __init__(self, label: np.ndarray):
        self._label = label

    def select(self, thresholds: Sequence[Thresholds]) -> list[np.ndarray]:
        return [self._label]


def _select_block(folder: MapFolder, thresholds: Sequence[Thresholds], out: Path | None, reuse: bool) -> Kept:
    """Label some images; return the kept pixels.

    The labels of the first thresholds are written to `out`. Where that is all that is wanted, with `reuse` a label that
    is there already is counted instead of made again: this job wrote it. One that is damaged is made again.
    """
    stored: set[str] = set()
    current = 0

    def views() -> Iterator[tuple[str, Any]]:
        nonlocal current
        for index, name in enumerate(folder.names):
            current = index
            label = None
            if out is not None and reuse and len(thresholds) == 1:
                label = _stored_label(out / f"{name}.png", folder.sizes[index])
            if label is not None:
                stored.add(name)
            yield name, folder.view(index) if label is None else _StoredLabel(label)

    def write(name: str, label: np.ndarray) -> None:
        if out is not None and name not in stored:
            write_label_png(out / f"{name}.png", label, folder.label_space)

    try:
        return selection.label(views(), thresholds, write)
    except MemoryError as error:
        raise _too_large(folder, current) from error


def _stored_label(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """Return a label written before; None where there is none that can be used."""
    try:
        label = read_label(path)
    except DataError:
        return None
    return label if label.shape == size else None


def count(
    folder: MapFolder,
    state: State,
    path: Path,
    *,
    workers: int = 1,
    cluster: Shares | None = None,
    progress: Progress = silent,
) -> None:
    """Count every image of `folder` that the present step of `state` has not counted, and save the state to `path`.

    Parameters
    ----------
    folder : MapFolder
    state : State
    path : Path
        The state is also saved there on the way.
    workers : int
        Processes; the result is the same for any number.
    cluster : Shares, optional
        A :class:`cbst_mx.cluster.Cluster`, whose workers take their place; they must see the same files.
    progress : callable, optional
        Called with (what, images done, images in all).

    Raises
    ------
    CBSTError
        If a map cannot be used or a file not be written (what was counted so far is not lost), or before anything is
        done if the disk is too small or another process counts into `path`.
    """
    portions = -(-len(state.counts.critical) // (folder.num_classes + 1))
    needed = needs(folder, workers=workers, portions=portions, labels=False)
    check_free_space(path.absolute().parent, needed.disk, what="folder of counts")
    locks = [lock_file(path, "state file")]
    if (path.absolute().parent / _JOB).is_file():  # the output folder of a whole job
        locks.append(lock_folder(path.absolute().parent, "output folder"))
    remove_leftovers(path.absolute().parent, path.name)
    with Workers(workers, cluster) as pool:
        _count(folder, state, path, pool, progress)
    for lock in locks:
        lock.release()


def _count(folder: MapFolder, state: State, path: Path, pool: Workers, progress: Progress) -> None:
    what = "second count" if state.counts.refining else "count"
    names = state.counts.pending(folder.names)
    done, saved = len(folder.names) - len(names), time.monotonic()
    versions = dict(zip(folder.names, folder.versions))
    try:
        blocks = pool.blocks(
            _count_block,
            folder,
            names,
            state.counts.part(),
            waiting_for=lambda: progress(what, done, len(folder.names)),
        )
        for number, (part, statistics, error) in blocks:
            state.counts.merge(part)
            if statistics is not None:
                state.statistics.merge(statistics)
                state.versions.update((name, versions[name]) for name in part.done)
            if error is not None:
                raise error
            done += number
            progress(what, done, len(folder.names))
            if time.monotonic() - saved > _CHECKPOINT:
                state.save(path)
                saved = time.monotonic()
    except StoppedError as error:
        error.keep("all")
        raise
    finally:
        state.save(path)


def needs(folder: MapFolder, *, workers: int, portions: int = 1, labels: bool = True) -> Needs:
    """Return how much disk space and memory (of all processes together) a job needs.

    Parameters
    ----------
    folder : MapFolder
    workers : int
        Processes.
    portions : int
        Number of portions that thresholds are wanted for.
    labels : bool
        Whether pseudo-labels are written.
    """
    areas = [height * width for height, width in folder.sizes]
    critical = (folder.num_classes + 1) * portions * LOWER * 8
    state = 4_000_000 + critical + len(folder.names) * 16 * folder.num_classes
    # PNGs of label maps are far below one bit a pixel
    disk = 2 * state + (sum(areas) // 8 + 4096 * len(areas) if labels else 0)
    largest = max(range(len(areas)), key=areas.__getitem__)
    stored = int(np.prod(folder.shapes[largest])) * max(4, folder.item_bytes)
    prior = folder.prior_bytes()
    # measured: 100 MB for the program
    return Needs(
        disk, (workers + (workers > 1)) * (100_000_000 + state + prior) + workers * (stored + PIXEL_BYTES * max(areas))
    )


def check_request(
    policy: str, portion: float | None, portions: Sequence[float], *, fidelity: str, workers: int
) -> list[float]:
    """Return the portions that thresholds are wanted for, that of the labels first and each once.

    Parameters
    ----------
    policy, portion, portions, fidelity, workers
        As for :func:`run`.

    Raises
    ------
    ConfigError
        If one of them is not allowed.
    """
    check_fidelity(fidelity)
    check_workers(workers)
    wanted = list(dict.fromkeys([*([] if portion is None else [portion]), *portions]))
    if len(wanted) > _MOST_PORTIONS:
        raise ConfigError(f"portions must be at most {_MOST_PORTIONS}, got {len(wanted)}")
    for value in wanted:
        check_policy(policy, value)
    return wanted


def run(
    folder: MapFolder,
    out: Path,
    *,
    policy: str,
    portion: float | None,
    portions: Sequence[float] = (),
    fidelity: str = "paper",
    state: State | None = None,
    workers: int = 1,
    cluster: Shares | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run the whole job into the folder `out`, or go on with it.

    Parameters
    ----------
    folder : MapFolder
        The maps.
    out : Path
        New, empty, or of this job.
    policy : {"global", "class-balanced"}
        ST or CBST.
    portion : float, optional
        p of the pseudo-labels; None writes none (nor ``kc.json``).
    portions : sequence of float
        Portions of the sweep table.
    fidelity : {"paper", "released"}
        Whose rules thresholds follow.
    state : State, optional
        Counts made before, for example merged from several machines. Every map of `folder` must be counted in it.
    workers : int
        Processes; the result is the same for any number.
    cluster : Shares, optional
        A :class:`cbst_mx.cluster.Cluster`, whose workers take their place; they must see the same files.
    progress : callable, optional
        Called with (what, images done, images in all).

    Returns
    -------
    dict
        What ``kc.json`` holds (without `portion`: only the key ``sweep``), with ``sweep``, the rows of ``sweep.csv``.

    Raises
    ------
    CBSTError
        If anything given cannot be used. Finished parts stay; the same call goes on from them.
    """
    wanted = check_request(policy, portion, portions, fidelity=fidelity, workers=workers)
    if not wanted:
        raise ConfigError("a portion or portions must be given, got neither")
    if state is not None:
        _check_counted(folder, state, fidelity, policy, wanted)
    identity = {
        "settings": {**folder.settings(), "fidelity": fidelity},
        "names": list(folder.label_space.names),
        "policy": policy,
        "portion": portion,
        "portions": list(portions),
        "counted images": None if state is None else len(state.counts.names),
        # of a count that goes on the state knows the files
        "files": None if state is None else hashlib.sha256(json.dumps(folder.names).encode()).hexdigest(),
    }
    with Workers(workers, cluster) as pool:
        needed = needs(folder, workers=workers, portions=len(wanted), labels=portion is not None)
        check_free_space(out, needed.disk, what="output folder")
        lock = _open(out, identity)  # given back at the latest when this function ends
        state_path = out / "state.npz"
        labels = out / LABELS if portion is not None else None
        reuse = state_path.is_file()  # else nobody knows of which files the labels are
        if reuse:
            state = _stored(folder, state_path, state, fidelity)
            before, there = read_json(out / _JOB).get("outputs", {}), digests(out)
            if before and before == there and not state.counts.pending(folder.names):
                made = finished(folder, out, portion, portions)
                if made is not None:
                    return made
            reuse = before.get(LABELS) in (None, there.get(LABELS))  # labels that were altered are made again
        state = _counted(folder, state_path, state, fidelity, [policy], wanted, pool, progress)
        state.statistics.save(out / "image_statistics.npz")
        thresholds = [state.counts.thresholds(policy, value) for value in wanted]
        total = _select(folder, thresholds, labels, pool, progress, reuse=reuse)
        remove_leftovers(out, owned=lock.works, below=True)  # of workers that were killed while they wrote

    names = folder.label_space.names
    result: dict[str, Any] = {"sweep": []}
    if portions:
        chosen = [wanted.index(value) for value in portions]
        result["sweep"] = sweep_rows([thresholds[i] for i in chosen], total.kept[chosen], names)
        write_text(out / "sweep.csv", sweep_text(result["sweep"]))
    if portion is not None:
        record = _record(thresholds[0], total, state, folder)
        write_json(out / "kc.json", record)
        result.update(record)
    write_json(out / _JOB, {**identity, "outputs": digests(out)}, sealed=True)
    lock.release()
    return result


def _select(
    folder: MapFolder,
    thresholds: Sequence[Thresholds],
    labels: Path | None,
    pool: Workers,
    progress: Progress,
    *,
    reuse: bool,
) -> Kept:
    """Label all images, as :func:`_select_block` does some; return the kept pixels."""
    total, done, count = Kept.none(len(thresholds), folder.num_classes), 0, len(folder.names)

    def tell() -> None:
        progress("selection", done, count)

    blocks = pool.blocks(_select_block, folder, folder.names, thresholds, labels, reuse, waiting_for=tell)
    try:
        for number, kept in blocks:
            total += kept
            done += number
            tell()
    except StoppedError as error:
        error.keep("all" if labels is not None and len(thresholds) == 1 else "steps")
        raise
    return total


def _record(thresholds: Thresholds, total: Kept, state: State, folder: MapFolder) -> dict[str, Any]:
    """Return what ``kc.json`` holds: the record of the pass, and what is odd about it."""
    predicted = state.statistics.total(folder.names)
    labelling = Labelling(thresholds, total.kept[0], total.pixels, int(predicted.sum()))
    record = {**labelling.to_json(folder.label_space.names), "images": len(folder.names), "settings": state.settings}
    found = selection.remarks(labelling, predicted, folder.label_space.names)
    return {**record, "remarks": found} if found else record


def _counted(
    folder: MapFolder,
    path: Path,
    state: State | None,
    fidelity: str,
    policies: Sequence[str],
    portions: Sequence[float],
    pool: Workers,
    progress: Progress,
) -> State:
    """Return the counts from which the thresholds can be read, those of `state` or anew; saved to `path`."""
    if state is None:
        state = State.new(folder, fidelity)
    for number, _ in enumerate(selection.passes(state.counts, policies, portions)):
        if number or not state.counts.refining and state.counts.pending(folder.names):
            _count(folder, state, path, pool, progress)
    if not path.is_file():
        state.save(path)
    return state


def _stored(folder: MapFolder, path: Path, given: State | None, fidelity: str) -> State:
    """Return the counts of a job that goes on; refuse them when the images are others than those that were counted."""
    state = State.load(path)
    state.check(folder, fidelity)
    if given is None:
        complete = state.counts.refining or not state.counts.pending(state.own_images)
        gone = sorted(set(state.counts.names).difference(folder.names))
        come = sorted(set(folder.names).difference(state.counts.names)) if complete else []
        state.all_images, state.own_images = set(folder.all_names), set(folder.names)
        if gone or come:
            what = f"{gone[0]}, which it has counted, is gone" if gone else f"{come[0]} is new"
            raise RunError(f"{path} must be of the same files as before, {what}: give a new output folder")
    return state


def _check_counted(folder: MapFolder, state: State, fidelity: str, policy: str, portions: Sequence[float]) -> None:
    """Refuse a state in which a map is missing, or which needs maps that are not in the folder."""
    state.check(folder, fidelity)
    state.check_whole(folder)
    missing = sorted(set(state.counts.names).difference(folder.names))
    if missing:
        # the maps of this folder are not enough for another pass: the state must have had it
        try:
            for value in portions:
                state.counts.thresholds(policy, value)
        except DataError as error:
            raise DataError(
                f"the state holds images that are not in the folder, such as {missing[0]}, and needs a second count of "
                "them for these portions: run label count with --refine on every machine and merge the results"
            ) from error


def _open(out: Path, identity: Mapping[str, Any]) -> Lock:
    """Make the output folder, or go on in it when this job wrote it; return its lock."""
    path = out / _JOB
    identity = json.loads(json.dumps(identity))
    begun = re.compile(rf"{LOCK}|\.{path.name}\.[0-9]+\.part")
    foreign = out.exists() and (not out.is_dir() or not all(begun.fullmatch(other.name) for other in out.iterdir()))
    if foreign and not path.is_file():
        raise RunError(f"output folder {out} is not empty and not of a labelling job: give a new or empty folder")
    if out.is_dir():
        check_links(out)
    lock = lock_folder(out, "output folder")
    remove_leftovers(out, path.name)  # without it the folder is nobody's
    if path.is_file():
        try:
            stored = read_json(path)
        except RunError as error:
            raise RunError(f"{error}; put it back from a copy, or give a new folder") from error
        changed = [key for key in identity if not isinstance(stored, dict) or stored.get(key) != identity[key]]
        if changed:
            raise RunError(
                f"output folder {out} belongs to another job (other {', '.join(changed)}): give a new folder"
            )
        remove_leftovers(out, owned=lock.works, below=True)
    else:
        write_json(path, identity, sealed=True)
    return lock
