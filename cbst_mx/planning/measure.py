"""Time and memory of one kind of work at growing amounts, and the line through them.

An amount is 1 for one crop or one image of the real size; smaller ones are parts of its area, larger ones several at a
time. Time and memory of these networks are an offset, which does not grow with the work, plus so much per amount. The
least time of several repeats counts: others are what else the machine did. So does the time of the processor where it
is less than that of the wall, as it is where other programs keep the network waiting. Seconds, bytes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

from cbst_mx.errors import explain_device
from symbols.backend import gluon, mx

__all__ = ["Peak", "Series", "Stamp", "Timing", "between", "now", "repeated", "sampled"]

_MOST = 50  # repetitions of one measurement
_ENOUGH = 64  # crops or images at once; no more are asked for
_FULL = 0.97  # of a GPU's memory: MXNet's pool keeps some free
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_STAT = Path("/proc/stat")
_QUIET = 0.1  # cores that other programs may take of a machine that is called quiet


class Peak:
    """The largest memory of this process, or of a GPU, since :meth:`reset`.

    Where the system cannot reset it, and on GPUs, whose memory is kept, it is the largest since the start.

    Parameters
    ----------
    ctx : mx.Context
        Where the network computes.
    network : HybridBlock, optional
        The network, hybridised with static memory: it keeps the buffers of its largest call.
    """

    def __init__(self, ctx: mx.Context, network: gluon.HybridBlock | None = None):
        self._ctx, self._network = ctx, network
        self.reset()

    def reset(self) -> None:
        """Begin anew, where the system can."""
        gc.collect()  # networks of measurements before
        mx.nd.waitall()
        if self._ctx.device_type == "gpu":
            if self._network is not None:
                self._network.hybridize(static_alloc=True, static_shape=True)  # gives them back
            mx.nd.zeros((1,), ctx=self._ctx).wait_to_read()  # MXNet refuses to empty what has never been used
            self._ctx.empty_cache()
            return
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")

    def limit(self) -> int | None:
        """Return how many bytes of a GPU can be taken; None for another device, which is not filled to its end."""
        if self._ctx.device_type != "gpu":
            return None
        return int(_FULL * mx.context.gpu_memory_info(self._ctx.device_id)[1])

    def read(self) -> int:
        """Return the bytes."""
        if self._ctx.device_type == "gpu":
            free, total = mx.context.gpu_memory_info(self._ctx.device_id)
            return int(total - free)
        with contextlib.suppress(OSError):
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Stamp(NamedTuple):
    """A moment: seconds of the wall, of this process on the processor, and of every process on it (None: unknown)."""

    wall: float
    cpu: float
    every: float | None


class Timing(NamedTuple):
    """Times of repeats of one piece of work, in seconds, one beside the other."""

    wall: list[float]
    cpu: list[float]  # of all threads of this process
    others: float | None = None  # cores that other programs took meanwhile; None where that cannot be known


def now() -> Stamp:
    """Return the present moment."""
    return Stamp(time.perf_counter(), time.process_time(), _spent())


def _spent() -> float | None:
    """Return the seconds that all cores of this machine have computed; None on systems that do not tell."""
    try:
        fields = _STAT.read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[1:9])
        return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def between(stamps: Sequence[Stamp]) -> Timing:
    """Return the times between stamps of :func:`now`."""
    first, last, others = stamps[0], stamps[-1], None
    if first.every is not None and last.every is not None:
        others = max(0.0, last.every - first.every - (last.cpu - first.cpu)) / max(last.wall - first.wall, 1e-9)
    pairs = list(zip(stamps, stamps[1:]))
    return Timing(
        [end.wall - start.wall for start, end in pairs], [end.cpu - start.cpu for start, end in pairs], others
    )


def repeated(work: Callable[[], object], budget: float) -> Timing:
    """Return the times of `work`, at least one and as many as fit into `budget`, after one to warm up."""
    begun = time.perf_counter()
    work()
    stamps = [now()]
    while len(stamps) == 1 or (
        len(stamps) <= _MOST and time.perf_counter() - begun + (stamps[-1].wall - stamps[-2].wall) < budget
    ):
        work()
        stamps.append(now())
    return between(stamps)


@dataclass
class Series:
    """What was measured of one kind of work.

    Attributes
    ----------
    amounts : list of float
        Growing.
    seconds : list of float
        Time of each on a machine that does nothing else.
    peaks : list of int
        Largest memory during each.
    busy : float
        How many times longer than that the work took in the last measurement, by the wall: 1 on a quiet machine.
    start : float
        Seconds that a first step takes in addition to others.
    too_large : float or None
        Least amount for which a GPU had not enough memory.
    """

    amounts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    busy: float = 1.0
    start: float = 0.0
    too_large: float | None = None

    def add(self, amount: float, times: Timing, peak: int) -> None:
        """Add a measurement."""
        usual = statistics.median(times.wall)
        quiet = times.others is not None and times.others < _QUIET
        seconds = usual if quiet else min(min(times.wall), min(times.cpu))
        self.amounts.append(amount)
        self.seconds.append(seconds)
        self.peaks.append(peak)
        self.busy = max(1.0, usual / max(seconds, 1e-9))

    def fitting(self, amounts: Sequence[float], limit: int | None) -> int:
        """Return how many of growing amounts fit by the line through two or more, and note the least that does not.

        It is better not tried: behind a request that fails CUDA reports it again with kernels of later work.
        """
        if limit is None or len(self.amounts) < 2:
            return len(amounts)
        fits = [amount <= self.amounts[-1] or self.bytes_at(amount) <= limit for amount in amounts]
        if all(fits):
            return len(amounts)
        self.too_large = amounts[fits.index(False)]
        return fits.index(False)

    def room(self, amount: int, limit: int) -> tuple[int, bool]:
        """Return how many fit where `amount` do, doubled as long as the line says so, and whether twice as many do not.

        Up to 64, and no more than `amount` where the memory that was measured does not grow.
        """
        most = amount
        while 2 * most <= _ENOUGH:
            needed = self.bytes_at(2 * most)
            if needed > limit:
                return most, True
            if needed <= max(self.peaks):
                break
            most *= 2
        return most, False

    def seconds_at(self, amount: float) -> float:
        """Return the time of an amount: measured, or by the line through the two largest that were."""
        return _on_line(self.amounts, self.seconds, amount, proportional=True)

    def bytes_at(self, amount: float) -> int:
        """Return the memory of an amount, likewise; never less than the most that was measured."""
        return max(*self.peaks, int(_on_line(self.amounts, self.peaks, amount, proportional=False)))

    def stretch(self, amount: float) -> float:
        """Return how many times larger an amount is than the largest that was measured, at least 1."""
        return max(1.0, amount / self.amounts[-1])


def _on_line(amounts: Sequence[float], values: Sequence[float], amount: float, *, proportional: bool) -> float:
    """Return the value at `amount` on the line through the last two points.

    Where they give none that fits (a larger amount took less, or the line would begin below 0), of a proportional value
    that through the last point and 0; of another one the last value.
    """
    if amount in amounts:
        return values[amounts.index(amount)]
    if len(amounts) > 1:
        slope = (values[-1] - values[-2]) / (amounts[-1] - amounts[-2])
        if slope > 0 and values[-1] - slope * amounts[-1] >= 0:
            return values[-1] + slope * (amount - amounts[-1])
    return values[-1] * amount / amounts[-1] if proportional else values[-1]


def sampled(points: Sequence[tuple[float, Callable[[float], Timing]]], budget: float, peak: Peak) -> Series:
    """Measure the smallest amount, and then the largest ones that fit into the time.

    Parameters
    ----------
    points : sequence of (float, callable)
        Growing amounts, and what measures each: given the seconds it may take, returns times, the warm-up left out.
    budget : float
        Seconds for all of them; up to twice as many where that saves from guessing, and two amounts are measured
        whatever they take, for a line.
    peak : Peak
        Memory.
    """
    series, start, place = Series(), time.perf_counter(), 0
    while place < len(points):
        left = budget - (time.perf_counter() - start)
        points = points[: series.fitting([amount for amount, _ in points], peak.limit())]
        if place >= len(points):
            break
        if series.amounts and (len(series.amounts) > 1 or peak.limit() is None):
            # once to warm up and once that counts; rather twice the time than a guess
            took = {i: 2 * series.busy * series.seconds_at(points[i][0]) for i in range(place, len(points))}
            fits = [i for i in took if took[i] < left + budget]
            if not fits and len(series.amounts) > 1:
                break
            place = fits[-1] if fits else place
        amount, measure = points[place]
        peak.reset()
        try:
            times = measure(left if place == len(points) - 1 else left / 5)
        except RuntimeError as error:
            if not series.amounts or explain_device(error) is None:
                raise
            series.too_large, points = amount, points[:place]
            place = place - 1 if points[-1][0] > series.amounts[-1] else place  # a smaller one may fit
            with contextlib.suppress(RuntimeError):  # what still waits says the same
                mx.nd.waitall()
            continue
        series.add(amount, times, peak.read())
        place += 1
    return series
