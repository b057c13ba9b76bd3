"""Divergence, seen as soon as it is there: the loss of every iteration is looked at, without waiting for the device.

MXNet computes behind the program, which has prepared the next iteration while one is computed. So the loss that is read
is that of `LAG` iterations ago, which is there already.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Sequence

import numpy as np

from cbst_mx.errors import TrainingError
from symbols.backend import gluon, mx

__all__ = ["LAG", "LossWatch", "all_finite", "finite_or_none", "gradient_norm"]

LAG = 2  # iterations


class LossWatch:
    """Looks at the losses of a phase.

    Parameters
    ----------
    what : str
        Name of the phase, which begins the sentence.
    names : sequence of str
        Names of the losses of an iteration.
    iterations : int
        Iterations in all.
    advice : str
        End of the sentence: what its reader can do.
    """

    def __init__(self, what: str, names: Sequence[str], iterations: int, *, advice: str):
        self.checkpoint: int | None = None  # iteration of the last one
        self.latest: list[float] = []  # losses of the last iteration that was looked at
        self._what, self._names, self._iterations, self._advice = what, list(names), iterations, advice
        self._waiting: deque[tuple[int, float, list[list[mx.nd.NDArray]]]] = deque()

    def add(self, iteration: int, rate: float, losses: list[list[mx.nd.NDArray]]) -> None:
        """Take the losses of an iteration, and look at those of `LAG` iterations ago.

        Parameters
        ----------
        iteration : int
            Counted from 1.
        rate : float
            Its learning rate.
        losses : list of list of NDArray of shape (1,)
            For every name the summands of the loss.

        Raises
        ------
        TrainingError
            If a loss is not finite.
        """
        self._waiting.append((iteration, rate, losses))
        if len(self._waiting) > LAG:
            self._look()

    def look(self) -> list[float]:
        """Wait for all losses and return those of the last iteration; none where none is waiting.

        Raises
        ------
        TrainingError
            If a loss is not finite.
        """
        values: list[float] = []
        while self._waiting:
            values = self._look()
        return values

    def check_parameters(self, network: gluon.HybridBlock, iteration: int, rate: float) -> None:
        """Refuse parameters that are not finite, which the last step may have made of a finite loss.

        Raises
        ------
        TrainingError
            If one is not finite.
        """
        if not all_finite(network):
            self._fail("parameters are not finite after", iteration, rate)

    def _look(self) -> list[float]:
        iteration, rate, losses = self._waiting.popleft()
        values = [sum(float(part.asscalar()) for part in parts) for parts in losses]
        if not all(map(math.isfinite, values)):
            shown = ", ".join(f"{value:g}" for value in values)
            many = "the losses of " + ", ".join(self._names) + " are" if len(values) > 1 else "the loss is"
            self._fail(f"{many} {shown} at", iteration, rate)
        self.latest = values
        return values

    def _fail(self, found: str, iteration: int, rate: float) -> None:
        if self.checkpoint is None:
            before = "there is no checkpoint before it"
        else:
            before = f"the last checkpoint, of iteration {self.checkpoint}, is from before it"
        raise TrainingError(
            f"{self._what} diverged: {found} iteration {iteration} of {self._iterations}, where the learning rate was "
            f"{rate:g}; {before}; {self._advice}"
        )


def all_finite(network: gluon.HybridBlock) -> bool:
    """Return whether all parameters of a network are finite; waits for its first context.

    Their squares say so where these are finite, in about a hundredth of the time that MXNet's operator for it takes on
    a processor; that one decides where they are not, as those of large numbers.
    """
    arrays = [parameter.list_data()[0] for parameter in network.collect_params().values()]
    if math.isfinite(_sum_of_squares(arrays).asscalar()):
        return True
    return bool(mx.nd.multi_all_finite(*arrays, num_arrays=len(arrays)).asscalar())


def gradient_norm(network: gluon.HybridBlock, scale: float = 1.0) -> mx.nd.NDArray:
    """Compute the Euclidean norm of the gradient of all parameters that are trained.

    Parameters
    ----------
    network : HybridBlock
        Behind a backward pass, and behind the sum over its contexts.
    scale : float
        Factor by which the loss was scaled.

    Returns
    -------
    NDArray of shape (1,), float32
        To about three digits for layers of 10^8 parameters, whose products a BLAS adds up in float32; not waited for.
    """
    trained = [p for p in network.collect_params().values() if p.grad_req != "null"]
    return _sum_of_squares([parameter.list_grad()[0] for parameter in trained]).sqrt() / scale


def _sum_of_squares(arrays: Sequence[mx.nd.NDArray]) -> mx.nd.NDArray:
    # float32 whatever they are: the squares of 256 and more are infinite in float16
    flat = [array.reshape(-1).astype(np.float32, copy=False) for array in arrays]
    return mx.nd.concat(*(mx.nd.dot(one, one) for one in flat), dim=0).sum()


def finite_or_none(value: mx.nd.NDArray) -> float | None:
    """Return a number, or None where it is not finite, which JSON cannot hold."""
    number = float(value.asscalar())
    return number if math.isfinite(number) else None
