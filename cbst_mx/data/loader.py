"""Training batches, prepared by threads and equal bit for bit for any number of them.

What a batch holds is decided by its iteration number alone: every epoch is a fresh permutation drawn from
(seed, round, epoch), and every sample is changed by a generator of its own (seed, round, epoch, index). So the number
of workers, the order in which they finish and a restart in the middle change nothing.

Workers are threads, not processes: decoding, resizing and NumPy's arithmetic run outside Python's global lock, and no
process is forked under a library that has threads of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Generator, Iterator, Sequence, Tuple, Union

import numpy as np

from cbst_mx import seeding
from cbst_mx.data.png_pixels import Rows
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from cbst_mx.errors import CBSTError, ConfigError, DataError

__all__ = ["BatchLoader", "Reader", "Transform"]

#: Reads one training sample: image uint8 (H, W, 3) RGB, or the rows of one, and label uint8 (H, W) trainId. Called from
#: several threads.
Reader = Callable[[], Tuple[Union[np.ndarray, Rows], np.ndarray]]
#: Changes one sample with a generator, as `TrainTransform` does; every result must have the same size.
Transform = Callable[[Union[np.ndarray, Rows], np.ndarray, np.random.Generator], Tuple[np.ndarray, np.ndarray]]


class BatchLoader:
    """Iterate over a fixed number of training batches.

    Each batch is a pair (images, labels): float32 (B, 3, h, w), normalised, and float32 (B, h, w) trainIds with
    255 = ignore. Iterating again gives the same batches again.

    An epoch is a random permutation of the samples cut into full batches; what is left over at its end is dropped.
    Where there are fewer samples than places in a batch, permutations follow each other without a gap instead, so
    samples repeat (each time changed differently).

    Leaving the loop early stops the workers as soon as the iterator is closed or forgotten; keep the iterator in
    ``contextlib.closing`` where an error may hold on to it.

    Parameters
    ----------
    samples : sequence of Reader
        Functions that read one sample each and may be called from any thread. A function's `name` attribute, where it
        has one, is used in error messages.
    transform : Transform
        Usually a `TrainTransform`.
    batch_size : int
        Samples per batch, B.
    seed, round : int
        Passed to `seeding.generator`.
    iterations : int
        Number of batches of the whole training phase.
    start : int
        First batch to yield, for continuing; the earlier ones are not computed. ``len`` is iterations - start.
    workers : int
        Number of threads; 0 prepares each batch when it is asked for. At most two batches per worker wait.
    mean, std : three numbers each
        Passed to `normalise`.
    groups : sequence of (int, int), optional
        Fixed composition of every batch: pairs (number of samples, places in a batch) for consecutive parts of
        `samples`, for example ``[(len(source), 2), (len(target), 2)]``. Each group has its own permutations and epochs.
        By default all samples form one group: one common permutation.
    cache : int
        Bytes of decoded samples that are kept for later epochs; what does not fit is read again each time. In an epoch
        every sample comes once, so those that came first stay: to throw one out for another would gain nothing.

    Raises
    ------
    ConfigError
        If an argument cannot be used.
    DataError
        If a sample cannot be read or used, while iterating; the message names it.
    """

    def __init__(
        self,
        samples: Sequence[Reader],
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        round: int = 0,
        iterations: int,
        start: int = 0,
        workers: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        groups: Sequence[tuple[int, int]] | None = None,
        cache: int = 0,
    ) -> None:
        for name, value, low in (
            ("batch_size", batch_size, 1),
            ("iterations", iterations, 0),
            ("start", start, 0),
            ("workers", workers, 0),
            ("cache", cache, 0),
        ):
            if not _integer(value) or value < low:
                raise ConfigError(f"{name} must be an integer of at least {low}, got {value!r}")
        if start > iterations:
            raise ConfigError(f"start must be at most iterations ({iterations}), got {start}")
        if len(samples) == 0:
            raise ConfigError("samples must hold at least one training sample, got none")
        self.groups = _checked_groups(groups, len(samples), batch_size)
        # Both calls refuse bad values now instead of in the first batch.
        seeding.generator(seed, round=round, purpose="order")
        normalise(np.zeros((1, 1, 3), np.uint8), mean, std)
        self.samples = samples
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.round = round
        self.iterations = iterations
        self.start = start
        self.workers = workers
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._rows: Sequence[int] | None = None
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = cache
        self._lock = threading.Lock()

    def only(self, rows: Sequence[int]) -> BatchLoader:
        """Prepare these rows of every batch alone, in this order; return this loader."""
        self._rows = list(rows)
        return self

    def __len__(self) -> int:
        return self.iterations - self.start

    def __iter__(self) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        plans = self.plans()
        if self.workers == 0:
            for plan in plans:
                yield self._batch(plan)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="cbst-loader")
        pending: deque[Future] = deque()
        try:
            for plan in plans:
                pending.append(pool.submit(self._batch, plan))
                if len(pending) == 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            pool.shutdown(wait=True)

    def plans(self) -> Iterator[list[tuple[int, int]]]:
        """Yield, per batch, the (epoch, index) of its samples, without reading any."""
        orders = []
        first = 0
        for number, (size, places) in enumerate(self.groups):
            orders.append(_GroupOrder(size, places, first=first, group=number, seed=self.seed, round=self.round))
            first += size
        for iteration in range(self.start, self.iterations):
            batch = [item for order in orders for item in order.batch(iteration)]
            yield batch if self._rows is None else [batch[row] for row in self._rows]

    def _batch(self, plan: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for epoch, index in plan:
            image, label = self._sample(epoch, index)
            if images and label.shape != labels[0].shape:
                raise ConfigError(
                    f"transform must give every sample the same size, got {labels[0].shape} and {label.shape}"
                )
            images.append(normalise(image, self.mean, self.std))
            labels.append(label)
        return np.stack(images), np.stack(labels).astype(np.float32)

    def _sample(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = seeding.generator(self.seed, round=self.round, epoch=epoch, index=index, purpose="transform")
        try:
            return self.transform(*self._read(index), rng)
        except (CBSTError, OSError) as error:
            raise DataError(f"{self._name(index)} cannot be used: {error}") from error
        except Exception as error:
            # Not a fault of the data, so not a CBSTError: the traceback must stay visible.
            raise RuntimeError(f"{self._name(index)} failed with {type(error).__name__}: {error}") from error

    def _read(self, index: int) -> tuple[np.ndarray | Rows, np.ndarray]:
        """Return a sample, from the cache where it is there; what is kept cannot be written to."""
        if index in self._kept:
            return self._kept[index]
        image, label = self.samples[index]()
        size = image.nbytes + label.nbytes
        if size > self._room:
            return image, label
        image, label = np.asarray(image).view(), label.view()
        image.flags.writeable = label.flags.writeable = False
        with self._lock:
            if size <= self._room and index not in self._kept:  # another thread may have read it too
                self._kept[index] = image, label
                self._room -= size
        return image, label

    def _name(self, index: int) -> str:
        name = getattr(self.samples[index], "name", None)
        return f"training sample {index}" + (f" ({name})" if isinstance(name, str) else "")


class _GroupOrder:
    """Plan of which samples of one group are in which batch, by iteration number."""

    def __init__(self, size: int, places: int, *, first: int, group: int, seed: int, round: int) -> None:
        self._size = size
        self._places = places
        self._first = first
        self._group = group
        self._seed = seed
        self._round = round
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def batch(self, iteration: int) -> list[tuple[int, int]]:
        """Return the (epoch, index into all samples) of this group's places in batch `iteration`."""
        # Samples used per epoch: full batches only, or all of them where they do not fill one.
        used = self._size // self._places * self._places or self._size
        items = []
        for position in range(iteration * self._places, (iteration + 1) * self._places):
            epoch, rank = divmod(position, used)
            items.append((epoch, self._first + int(self._order(epoch)[rank])))
        return items

    def _order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = seeding.generator(self._seed, round=self._round, epoch=epoch, index=self._group, purpose="order")
            self._epoch, self._permutation = epoch, rng.permutation(self._size)
        return self._permutation


def _integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked_groups(groups: Sequence[tuple[int, int]] | None, count: int, batch_size: int) -> list[tuple[int, int]]:
    if groups is None:
        return [(count, batch_size)]
    pairs = [tuple(group) if isinstance(group, (tuple, list)) else () for group in groups]
    if not pairs or not all(len(pair) == 2 and all(_integer(n) and n >= 1 for n in pair) for pair in pairs):
        raise ConfigError(f"groups must be pairs (samples, places in a batch) of integers above 0, got {groups!r}")
    if sum(size for size, _ in pairs) != count:
        raise ConfigError(f"groups must cover all {count} samples, got {sum(size for size, _ in pairs)}")
    if sum(places for _, places in pairs) != batch_size:
        raise ConfigError(
            f"groups must fill the {batch_size} places of a batch, got {sum(places for _, places in pairs)}"
        )
    return [(int(size), int(places)) for size, places in pairs]
