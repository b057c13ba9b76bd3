"""Several processes that train one network together: each computes its part of every batch, and MXNet adds up.

MXNet's kvstore (``dist_sync``) adds the gradients of all processes; each makes the same update, so their parameters
stay equal to the last bit. What else has to be known by all (numbers of valid pixels, losses, moving statistics,
whether to stop) goes the same way. Two processes of one device each give what one process with two devices gives, bit
for bit; more of them to the order in which sums are made.

A process is one of them by its environment (``DMLC_ROLE=worker``, see :mod:`cbst_mx.cluster.kvstore`) when mxnet is
imported.
"""

from __future__ import annotations

import os
from typing import Callable, Mapping, Protocol, Sequence

import numpy as np

from cbst_mx.errors import ConfigError, RunError
from cbst_mx.training.optimiser import new_trainer
from symbols.backend import gluon, mx

__all__ = ["ALONE", "Alone", "Ranks", "Team"]

_HALF = 1 << 16  # float32 holds whole numbers up to 2^24: larger ones travel in two parts


class Team(Protocol):
    """Those who train a network together, seen by one of them.

    Attributes
    ----------
    rank, size : int
        Which of them, from 0, of how many.
    stopping : bool
        Whether one of them was asked to stop when all agreed last.
    """

    rank: int
    size: int
    stopping: bool

    def trainer(self, parameters: gluon.ParameterDict, options: dict[str, float]) -> gluon.Trainer:
        """Return a trainer whose steps add up the gradients of all contexts of all of them."""

    def total(self, count: int) -> int:
        """Return the sum over all of them of whole numbers in [0, 2^32)."""

    def losses(self, own: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        """Return the losses of all parts of a batch in their order, given those of this one's parts."""

    def copies(self, own: Mapping[str, list[mx.nd.NDArray]]) -> dict[str, list[mx.nd.NDArray]]:
        """Return the moving statistics of all contexts of all of them, given those of this one's contexts."""

    def any(self, wish: bool) -> bool:
        """Return whether one of them wishes something, and note in `stopping` whether one was asked to stop."""


class Alone:
    """A single process."""

    rank, size, stopping = 0, 1, False

    def trainer(self, parameters: gluon.ParameterDict, options: dict[str, float]) -> gluon.Trainer:
        """Return a trainer that adds up the gradients of all contexts of the parameters."""
        if len(parameters.list_ctx()) == 1:
            return new_trainer(parameters, options)
        trainer = new_trainer(parameters, options, kvstore="device")
        # left to the first step, this would copy the first context's parameters over the others' when they have moving
        # statistics of their own already, while the backward pass may still be writing them
        trainer._init_kvstore()
        trainer._init_params()
        mx.nd.waitall()
        return trainer

    def total(self, count: int) -> int:
        """Return the number."""
        return count

    def losses(self, own: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        """Return them."""
        return own

    def copies(self, own: Mapping[str, list[mx.nd.NDArray]]) -> dict[str, list[mx.nd.NDArray]]:
        """Return them."""
        return dict(own)

    def any(self, wish: bool) -> bool:
        """Return the wish."""
        return wish


ALONE = Alone()


class Ranks:
    """One of several processes; all must make the same calls in the same order.

    Parameters
    ----------
    contexts : sequence of mx.Context
        Devices of this process; the others have as many.
    asked_to_stop : callable
        Returns whether this process was asked to stop.

    Attributes
    ----------
    rank, size, stopping
        As for :class:`Team`.

    Raises
    ------
    RunError
        If the environment does not make this process one of several.
    """

    def __init__(self, contexts: Sequence[mx.Context], asked_to_stop: Callable[[], bool] = bool):
        role = os.environ.get("DMLC_ROLE")
        if role != "worker":
            raise RunError(f"DMLC_ROLE must be worker in a process that trains with others, got {role!r}")
        self._store = mx.kv.create("dist_device_sync" if contexts[0].device_type == "gpu" else "dist_sync")
        self.rank, self.size, self.stopping = int(self._store.rank), int(self._store.num_workers), False
        self._contexts, self._asked = list(contexts), asked_to_stop
        self._keys: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._next = 0

    def trainer(self, parameters: gluon.ParameterDict, options: dict[str, float]) -> gluon.Trainer:
        """Return a trainer whose steps add up the gradients of all processes.

        Updates are made here, not by the server: the server would forget the multipliers of biases, and every later
        change of the learning rate. Parameters are handed over as fresh copies: once a network has computed, oneDNN
        keeps those of convolutions in a layout of its own, at which the server ends. And all of them now, not at the
        first step, whose gradients could overtake them.
        """
        trainer = new_trainer(parameters, options, kvstore=self._store)
        trainer._init_kvstore()
        for index, parameter in enumerate(trainer._params):
            fresh = mx.nd.array(parameter.list_data()[0].asnumpy())
            self._store.broadcast(index, fresh, [fresh])
            parameter.set_data(fresh)
        trainer._params_to_init = []
        mx.nd.waitall()
        self._next = len(trainer._params)  # keys are whole numbers, those of other things above the trainer's
        return trainer

    def _sum(self, what: str, own: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the sum of float32 arrays of one shape, one from each process, without waiting for it."""
        if what not in self._keys:
            self._keys[what] = self._next, own.shape
            self._next += 1
            self._store.init(self._keys[what][0], mx.nd.zeros(own.shape))
        key, shape = self._keys[what]
        if own.shape != shape:
            raise ConfigError(f"{what} must have the shape {shape} in every iteration, got {own.shape}")
        out = mx.nd.empty(own.shape)
        self._store.pushpull(key, own, out=out)
        return out

    def total(self, count: int) -> int:
        """Return the sum of whole numbers in [0, 2^32), exactly."""
        high, low = self._sum("count", mx.nd.array(divmod(count, _HALF))).asnumpy().astype(np.int64).tolist()
        return int(high * _HALF + low)

    def losses(self, own: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
        """Return the losses of all parts of a batch: pass after pass, and in each process after process."""
        here = len(self._contexts)
        passes = len(own) // here
        table = mx.nd.zeros((passes, self.size, here))
        table[:, self.rank] = mx.nd.concat(*[loss.as_in_context(mx.cpu()) for loss in own], dim=0).reshape(
            (passes, here)
        )
        summed = self._sum("loss", table).reshape((-1,))
        return [summed[place : place + 1] for place in range(passes * self.size * here)]

    def copies(self, own: Mapping[str, list[mx.nd.NDArray]]) -> dict[str, list[mx.nd.NDArray]]:
        """Return the moving statistics of all contexts of all processes, bit for bit.

        A sum would turn -0 into 0, so their bits travel, 16 of them as a whole number.
        """
        if not own:
            return {}
        here = len(self._contexts)
        flat = np.stack(
            [np.concatenate([arrays[place].asnumpy().ravel() for arrays in own.values()]) for place in range(here)]
        )
        bits = flat.astype(np.float32).view(np.uint32)
        table = np.zeros((self.size, here, 2, flat.shape[1]), np.float32)
        table[self.rank] = np.stack(np.divmod(bits, _HALF), axis=1)
        high, low = np.moveaxis(self._sum("statistics", mx.nd.array(table)).asnumpy().astype(np.uint32), 2, 0)
        every = (high * np.uint32(_HALF) + low).view(np.float32).reshape(self.size * here, -1)
        ends = np.cumsum([arrays[0].size for arrays in own.values()])
        split = [np.split(row, ends[:-1]) for row in every]
        return {
            name: [mx.nd.array(row[place].reshape(arrays[0].shape)) for row in split]
            for place, (name, arrays) in enumerate(own.items())
        }

    def any(self, wish: bool) -> bool:
        """Return whether one of them wishes something, and note in `stopping` whether one was asked to stop."""
        wishes, stops = self._sum("agreement", mx.nd.array([wish, self._asked()])).asnumpy().tolist()
        self.stopping = stops > 0
        return bool(wishes)
