"""Checkpoints of a training phase: written whole, verified before they are used, and kept in two generations.

A checkpoint is one ``.params`` file: the arrays of the phase, and under ``about`` a JSON text as bytes that says which
phase it is of, how far it is and what has been recorded, with the SHA-256 of all of it. A checkpoint that is cut,
altered or of another phase is not used: the one before it is, or the phase starts anew; the log says which.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np

from cbst_mx.errors import CheckpointError, StoppedError
from cbst_mx.messages import cores
from cbst_mx.networks.parameters import load_arrays, remove_arrays, save_arrays
from cbst_mx.training.ranks import ALONE, Team
from cbst_mx.training.steps import has_batch_statistics
from symbols.backend import gluon, mx

__all__ = [
    "Checkpoints",
    "State",
    "count_threads",
    "moving_statistics",
    "network_arrays",
    "optimiser_arrays",
    "remove_checkpoints",
    "restore_network",
    "restore_optimiser",
    "saving_at_a_stop",
    "shapes_digest",
]

logger = logging.getLogger(__name__)

_ABOUT = "about"
_FORMAT = 1
_PIECE = 1 << 24  # bytes that are digested at a time


@dataclass(frozen=True)
class State:
    """State of a phase: what a checkpoint holds.

    Attributes
    ----------
    arrays : dict of str to NDArray
        Parameters and states of optimisers.
    iterations : int
        Iterations done.
    record : dict
        What has been recorded, as JSON values.
    threads : int
        Threads of the process that wrote it.
    sha256 : str
        Of all of it.
    """

    arrays: dict[str, mx.nd.NDArray]
    iterations: int
    record: dict[str, Any]
    threads: int
    sha256: str


def previous_path(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_checkpoints(*paths: Path) -> None:
    """Remove the checkpoints at `paths` and those before them, where they are there."""
    for path in paths:
        for place in (path, previous_path(path)):
            remove_arrays(place)


def count_threads() -> int:
    """Return how many threads MXNet computes with on a CPU: another number gives other last digits."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() else 0


@contextlib.contextmanager
def saving_at_a_stop(save: Callable[[], bool]) -> Iterator[None]:
    """Save the state of a phase if the block asks for a stop, before the error passes."""
    try:
        yield
    except StoppedError as error:
        if save():
            error.keep("all")
        raise


class Checkpoints:
    """The checkpoints of one phase.

    Parameters
    ----------
    path : Path or None
        File of the last one, the one before has ``.previous`` in its name; None writes and reads none.
    identity : mapping
        What the phase is, as JSON values: a checkpoint with another identity is not used.
    every : int
        Iterations from one to the next; 0: not by iterations.
    minutes : float
        Minutes from one to the next; 0: not by time.
    writes : bool
        Whether this process writes them; others of a training by several only read them.

    Attributes
    ----------
    last : int or None
        Iterations of the last one that was written or read.
    """

    def __init__(
        self,
        path: Path | None,
        identity: Mapping[str, Any],
        *,
        every: int = 0,
        minutes: float = 0.0,
        writes: bool = True,
    ):
        self.last: int | None = None
        self._path, self._writes = path, writes
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._every, self._seconds = every, 60 * minutes
        self._since = time.monotonic()
        self._verified = False  # whether the file at `path` is known to be good

    def due(self, iterations: int) -> bool:
        """Return whether one is to be written after so many iterations."""
        if self._path is None or self.last == iterations:
            return False
        by_time = bool(self._seconds) and time.monotonic() - self._since >= self._seconds
        return by_time or bool(self._every) and iterations % self._every == 0

    def save(self, arrays: Mapping[str, mx.nd.NDArray], iterations: int, record: Mapping[str, Any]) -> bool:
        """Write a checkpoint, and keep the one before it if that is good; return whether this process has one now.

        Raises
        ------
        RunError
            If it cannot be written; the last one is then still there.
        """
        if self._path is None:
            return False
        if self.last != iterations and self._writes:
            about = {
                "format": _FORMAT,
                "identity": self._identity,
                "iterations": iterations,
                "record": dict(record),
                "threads": count_threads(),
            }
            about["sha256"] = _digest(arrays, about)
            text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
            # in the computer's memory: a file knows the device of its arrays, and is read back onto it
            content = {name: array.as_in_context(mx.cpu()) for name, array in arrays.items()}
            content[_ABOUT] = mx.nd.array(text, ctx=mx.cpu(), dtype=np.uint8)
            save_arrays(self._path, content, previous=previous_path(self._path) if self._verified else None)
            self._verified = True
        self.last, self._since = iterations, time.monotonic()
        return self._writes

    def load(self) -> State | None:
        """Return the last good state of the phase, and log what was wrong with others; None to start anew."""
        if self._path is None:
            return None
        damaged = False
        for place in (self._path, previous_path(self._path)):
            if not place.is_file():
                continue
            try:
                state = self._read(place)
            except CheckpointError as error:
                logger.warning("%s", error)
                damaged = True
                continue
            if damaged:
                logger.warning("the checkpoint before it, %s of iteration %d, is used", place, state.iterations)
            self.last, self._verified = state.iterations, place == self._path
            return state
        if damaged:
            logger.warning("there is no good checkpoint of this phase: it starts anew")
        return None

    def _read(self, path: Path) -> State:
        arrays = load_arrays(path)
        try:
            about = json.loads(arrays.pop(_ABOUT).asnumpy().astype(np.uint8).tobytes().decode())
            stored = about.pop("sha256")
            good = stored == _digest(arrays, about) and about["format"] == _FORMAT
            kinds = {"identity": dict, "record": dict, "iterations": int, "threads": int}
            good = (
                good
                and all(type(about[key]) is kind for key, kind in kinds.items())
                and 0 <= about["iterations"] < 1 << 53
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged or of another version: it is not used") from error
        if not good:
            raise CheckpointError(f"checkpoint {path} has been altered since it was written: it is not used")
        theirs, own = about["identity"], self._identity
        other = sorted(key for key in {*theirs, *own} if theirs.get(key) != own.get(key))
        if other:
            raise CheckpointError(f"checkpoint {path} is of another phase (other {', '.join(other)}): it is not used")
        return State(arrays, about["iterations"], about["record"], about["threads"], stored)


def _digest(arrays: Mapping[str, mx.nd.NDArray], about: Mapping[str, Any]) -> str:
    """Return the SHA-256 of names, types, shapes and numbers of arrays, and of the text about them."""
    whole = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    with ThreadPoolExecutor(min(8, cores())) as pool:  # a stop waits for this; hashlib leaves Python's lock
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name].asnumpy())
            content = array.reshape(-1).view(np.uint8)
            pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]
            whole.update(f"{name} {array.dtype.str} {array.shape}".encode())
            for digest in pool.map(lambda piece: hashlib.sha256(piece.data).digest(), pieces):
                whole.update(digest)
    return whole.hexdigest()


def shapes_digest(network: gluon.HybridBlock) -> str:
    """Return the SHA-256 of the names and shapes of a network's parameters."""
    shapes = {name: list(p.shape) for name, p in network._collect_params_with_prefix().items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()


def network_arrays(
    network: gluon.HybridBlock, prefix: str = "parameter", team: Team = ALONE
) -> dict[str, mx.nd.NDArray]:
    """Return the parameters of a network as the arrays of a checkpoint.

    They are equal on all contexts but for the moving statistics, of which those of every context are kept: to make
    them equal here would let the result depend on when checkpoints are written. Waits for the devices, since a reader
    in MXNet 1.9.1 does not wait for moving statistics that a backward pass is still writing.
    """
    mx.nd.waitall()
    parameters = network._collect_params_with_prefix()
    arrays = {f"{prefix}:{name}": parameter.list_data()[0] for name, parameter in parameters.items()}
    for name, copies in moving_statistics(network, team).items():
        arrays[f"{prefix}:{name}"] = copies[0]
        arrays.update({f"{prefix}-{number}:{name}": copy for number, copy in enumerate(copies[1:], 1)})
    return arrays


def moving_statistics(network: gluon.HybridBlock, team: Team = ALONE) -> dict[str, list[mx.nd.NDArray]]:
    """Return what is not learned of a network, by name: that of every context of every process that trains it.

    Where it is frozen it is equal in all processes, and that of this one is all.
    """
    parameters = network._collect_params_with_prefix()
    own = {name: parameter.list_data() for name, parameter in parameters.items() if parameter.grad_req == "null"}
    return team.copies(own) if has_batch_statistics(network) else own


def restore_network(
    network: gluon.HybridBlock,
    arrays: Mapping[str, mx.nd.NDArray],
    prefix: str = "parameter",
    team: Team = ALONE,
) -> None:
    """Set the parameters of a network to those of a checkpoint, on any number of contexts.

    Moving statistics get their mean over the contexts if there are not as many as when they were written.
    """
    mx.nd.waitall()
    for name, parameter in network._collect_params_with_prefix().items():
        first = arrays[f"{prefix}:{name}"]
        copies = [first]
        while f"{prefix}-{len(copies)}:{name}" in arrays:
            copies.append(arrays[f"{prefix}-{len(copies)}:{name}"])
        places = parameter.list_data()
        if len(copies) == len(places) * team.size > 1:
            for place, copy in zip(places, copies[team.rank * len(places) :]):
                copy.copyto(place)
        else:
            parameter.set_data(first + sum(copy - first for copy in copies[1:]) / len(copies))
    mx.nd.waitall()


def optimiser_arrays(trainer: gluon.Trainer, prefix: str = "momentum") -> dict[str, mx.nd.NDArray]:
    """Return the state of a trainer's optimiser, which is equal on all contexts, as the arrays of a checkpoint."""
    arrays = {}
    for index, state in trainer._updaters[0].states.items():
        for part, array in enumerate(state if isinstance(state, tuple) else (state,)):
            if array is not None:
                arrays[f"{prefix}:{index}:{part}"] = array
    return arrays


def restore_optimiser(
    trainer: gluon.Trainer, arrays: Mapping[str, mx.nd.NDArray], iterations: int, prefix: str = "momentum"
) -> None:
    """Set the state of a trainer's optimiser to that of a checkpoint after so many iterations."""
    parts: dict[int, list[mx.nd.NDArray]] = {}
    for key in sorted(arrays):
        kind, _, place = key.partition(":")
        if kind == prefix:
            parts.setdefault(int(place.partition(":")[0]), []).append(arrays[key])
    for context, updater in zip(trainer._contexts, trainer._updaters):
        for index, found in parts.items():
            there = [array.as_in_context(context) for array in found]
            updater.states[index] = tuple(there) if len(there) > 1 else there[0]
            updater.states_synced[index] = True
    optimiser = trainer._optimizer
    optimiser.num_update = iterations  # Adam corrects its means by the number of updates
    for counts in optimiser._all_index_update_counts.values():
        counts.update(dict.fromkeys(parts, iterations))
