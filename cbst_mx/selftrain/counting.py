"""Exact thresholds of a target set of any size: k (Algorithm 1) and k_c (Algorithm 2) from counts, not from values.

C classes, H x W pixels, p the portion in (0, 1]. A float32 has 32 bits, and its bits, read as an integer, are in the
order of the values. So the value of any rank is found in two steps, without holding or sorting the values:

1. The upper 19 bits of every confidence are counted per predicted class: a bin holds 8192 neighbouring float32 numbers,
   1/1024 of an octave. These counts hold N_c and tell in which bin the value of any rank lies, for every portion and
   both policies.
2. In the critical bins, those that hold a wanted threshold, the lower 13 bits are counted, so every number by itself.
   That gives the value, bit for bit what sorting all confidences gives.

The network runs once; step 2 goes over what was kept of its output (maps at network stride, upsampled again in bands,
see ``class_maps``). A second pass cannot be avoided in general: a state from which the value of *any* rank can be read
exactly must tell apart all values that occurred, which are as many as there are pixels or as float32 numbers (42
million between 1/32 and 1, for each class). It is not needed where the values have no lower bits (maps of float16 that
are not upsampled); `StreamingThresholds.refine` says so.

The state is C x 4 MB of address space, of which the parts that values fall into are used (0.8 MB for confidences
between 1/32 and 1 and 19 classes), and 64 KB per critical bin. Counts are int64. States are added to merge them, so
neither the order of the images nor the number of processes or machines changes anything.
"""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Protocol, Sequence

import cv2
import numpy as np

from cbst_mx.errors import ConfigError, DataError, NotFiniteError
from cbst_mx.files import digest_of, pack_names, unpack_names
from cbst_mx.label_space import IGNORE
from cbst_mx.selftrain.thresholds import (
    POLICIES,
    RELEASED_STEP,
    Rank,
    Thresholds,
    check_fidelity,
    check_policy,
    find_values,
)

__all__ = ["LOWER", "LOWER_BITS", "UPPER", "StreamingThresholds", "keys_of", "value_of"]

MOST_CLASSES = 255  # predicted classes are uint8, and 255 is the label of unselected pixels
LOWER_BITS = 13
LOWER = 1 << LOWER_BITS  # values of the lower bits: the numbers in a bin
UPPER = 1 << (32 - LOWER_BITS)  # values of the upper bits: the bins of a class

_SIGN = 1 << 31
_INFINITY = 0x7F800000  # the smallest bits that are no positive number
_NOWHERE = UPPER - 1  # a bin that only NaN would be in
_CHUNK = 1 << 17  # pixels counted at a time: small enough for the processor's cache
_WIDEST = 1 << 14  # bins counted at a time: 16 octaves
_FORMAT = 2  # 1 had the names as texts of four bytes a letter


def keys_of(values: np.ndarray) -> np.ndarray:
    """Return integers in the order of the values: uint32 of the same shape, for float32 of any shape without NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.where(bits < _SIGN, bits | np.uint32(_SIGN), ~bits)


def value_of(key: int) -> np.float32:
    """Return the float32 of a key; of the two keys of zero both give +0."""
    bits = key - _SIGN if key >= _SIGN else (1 << 32) - 1 - key
    return np.uint32(bits).view(np.float32) + np.float32(0)


class _Countable(Protocol):
    def count_into(self, state: StreamingThresholds, name: str) -> None: ...


class _Critical(NamedTuple):
    """Where the value of a rank lies."""

    place: int  # pool * UPPER + bin; pools are the classes, pool C is all of them together
    position: int  # rank of the value in the bin, 1 for the largest
    total: int  # values in the bin


class StreamingThresholds:
    """Count the confidences of a target set and turn the counts into thresholds.

    First every image is given to :meth:`add`; then :meth:`refine` says whether the wanted thresholds need every image
    once more; then :meth:`thresholds` gives them::

        state = StreamingThresholds(19)
        for name, confidence, predicted in images():
            state.add(name, confidence, predicted)
        if state.refine(["class-balanced"], [0.2, 0.25]):
            for name, confidence, predicted in images():
                state.add(name, confidence, predicted)
        thresholds = state.thresholds("class-balanced", 0.2)

    Parameters
    ----------
    num_classes : int
        Number of classes C, from 1 to 255.
    fidelity : {"paper", "released"}
        Which values enter the pool and how ranks are counted.

    Raises
    ------
    ConfigError
        If `num_classes` is out of range or `fidelity` unknown.
    """

    def __init__(self, num_classes: int, *, fidelity: str = "paper"):
        if not isinstance(num_classes, (int, np.integer)) or not 1 <= num_classes <= MOST_CLASSES:
            raise ConfigError(f"num_classes must be a whole number from 1 to {MOST_CLASSES}, got {num_classes!r}")
        check_fidelity(fidelity)
        self.num_classes = num_classes
        self.fidelity = fidelity
        self._bins = np.zeros((num_classes, UPPER), dtype=np.int64)  # untouched pages take no memory
        self._range = (UPPER, 0)  # of the bins in use
        self._any_lower = False  # whether any lower bit was set in step 1
        self._names: dict[str, None] = {}
        self._first = ""  # digest of the names of step 1, once they are all there; a part has it in their place
        self._critical = np.zeros(0, dtype=np.int64)  # sorted indices of critical bins
        self._lower = np.zeros((0, LOWER), dtype=np.int64)  # the counts in them
        self._lower_names: dict[str, None] | None = None  # images counted in them; None in the first step
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []

    # -- counting ------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> np.ndarray:
        """N_c so far (with the released rules: the pixels that entered the pool), int64 (C,)."""
        low, high = self._range
        return self._bins[:, low : max(low, high)].sum(axis=1)

    @property
    def refining(self) -> bool:
        """Whether images are counted in the critical bins (step 2) rather than in all bins (step 1)."""
        return self._lower_names is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The images counted in step 1, sorted."""
        return tuple(sorted(self._names))

    @property
    def done(self) -> tuple[str, ...]:
        """The images counted in the present step, sorted."""
        return tuple(sorted(self._names if self._lower_names is None else self._lower_names))

    def pending(self, names: Iterable[str]) -> list[str]:
        """Return those of `names` that have not been counted in the present step, in their order."""
        done = self._names if self._lower_names is None else self._lower_names
        return [name for name in names if name not in done]

    @property
    def nbytes(self) -> int:
        """Bytes in use by the counts."""
        low, high = self._range
        return max(0, high - low) * self.num_classes * 8 + self._lower.nbytes

    def add(self, name: str, confidence: np.ndarray, predicted: np.ndarray) -> None:
        """Count the pixels of one image.

        Parameters
        ----------
        name : str
            The image's name; in each step it may come once.
        confidence : ndarray of shape (H, W), float32
            max_c p_n(c), or of q_n(c) * p_n(c) with a spatial prior.
        predicted : ndarray of shape (H, W), uint8
            argmax_c of the same; 255 where no class has any confidence. Such pixels are in no pool, but by the released
            rules in that of class 0, as the program has it.

        Raises
        ------
        DataError
            If an array has another shape, a value that is not finite or no class, or the image cannot be counted now.
        """
        self._check_name(name)
        values = np.ascontiguousarray(confidence, dtype=np.float32).reshape(-1)
        rows = np.ascontiguousarray(predicted).reshape(-1)
        if rows.dtype != np.uint8 or confidence.shape != predicted.shape or not rows.size:
            raise DataError(
                f"predicted of image {name} must be uint8 of the confidence's shape {confidence.shape} with at least "
                f"one pixel, got {predicted.dtype} of shape {predicted.shape}"
            )
        numbers = values.view(np.uint32)
        signed = bool(numbers.max() >= _INFINITY)  # or NaN, or infinity
        if signed and not np.isfinite(values).all():
            raise NotFiniteError(f"confidence of image {name} must be finite, got NaN or infinity")
        if rows.max() >= self.num_classes:
            unsure = rows == IGNORE
            wrong = rows[(rows >= self.num_classes) & ~unsure]
            if wrong.size:
                raise DataError(f"predicted of image {name} must be below {self.num_classes} or 255, got {wrong.max()}")
            if self.fidelity == "released":
                rows = np.where(unsure, np.uint8(0), rows)
            else:
                values, rows = values[~unsure], rows[~unsure]
        if self.fidelity == "released":
            kept = _every_fourth(rows)
            values, rows = values[kept], rows[kept]
        # the bins of negative values come first
        numbers, offset = (keys_of(values), 0) if signed else (values.view(np.uint32), UPPER // 2)
        if self._lower_names is None:
            self._count_upper(rows, numbers, offset)
            self._names[name] = None
        else:
            self._count_lower(rows, numbers, offset)
            self._lower_names[name] = None

    def collect(self, name: str, view: _Countable) -> None:
        """Count the pixels of one image of a set."""
        view.count_into(self, name)

    def add_counts(self, name: str, index: np.ndarray, counts: np.ndarray, any_lower: bool = True) -> None:
        """Add one image of which the pixels have been counted elsewhere (on a GPU).

        Parameters
        ----------
        name : str
            The image's name; in each step it may come once.
        index : ndarray of shape (n,), int64
            In step 1 class * UPPER + upper bits of the key; in step 2 slot * LOWER + lower bits, the slots being the
            places in `critical`. Each once.
        counts : ndarray of shape (n,), int64
            Pixels at these indices.
        any_lower : bool
            Whether any of the values has one of its lower 13 bits set; needed in step 1.

        Raises
        ------
        DataError
            If the image cannot be counted now.
        """
        self._check_name(name)
        if self._lower_names is None:
            self._bins.reshape(-1)[index] += counts
            self._widen(index % UPPER)
            self._any_lower |= any_lower
            self._names[name] = None
        else:
            self._lower.reshape(-1)[index] += counts
            self._lower_names[name] = None

    def _check_name(self, name: str) -> None:
        if self._lower_names is not None and self._names and name not in self._names:
            raise DataError(f"image {name} must be one of those counted in the first pass, it is not")
        if not self.pending([name]):
            raise DataError(f"image {name} must be counted once only in a pass, it has been counted already")

    def _widen(self, bins: np.ndarray) -> None:
        if bins.size:
            self._range = (min(self._range[0], int(bins.min())), max(self._range[1], int(bins.max()) + 1))

    def _count_upper(self, rows: np.ndarray, numbers: np.ndarray, offset: int) -> None:
        """Count the upper bits of pixels of classes `rows`; `offset` more is the bin."""
        if not self._any_lower:
            self._any_lower = bool(np.bitwise_or.reduce(numbers) & np.uint32(LOWER - 1))
        while numbers.size:  # once where the values span at most 16 octaves
            bottom, top = int(numbers.min()) >> LOWER_BITS, int(numbers.max()) >> LOWER_BITS
            low = max(bottom, top - _WIDEST + 1)
            rest = None
            if low > bottom:
                above = numbers >= np.uint32(low << LOWER_BITS)
                rest = rows[~above], numbers[~above]
                rows, numbers = rows[above], numbers[above]
            span = top - low + 1
            counts = np.zeros(self.num_classes * span, dtype=np.int64)
            for part, bins, index in _chunks(len(numbers), np.uint32, np.int32):
                np.right_shift(numbers[part], LOWER_BITS, out=bins)
                index[:] = rows[part]
                index *= span  # at most 255 classes of 2^14 bins
                index += bins.view(np.int32)
                index -= low
                counts += np.bincount(index, minlength=counts.size)
            self._bins[:, offset + low : offset + top + 1] += counts.reshape(-1, span)
            self._widen(np.array([offset + low, offset + top]))
            if rest is None:
                break
            rows, numbers = rest

    def _count_lower(self, rows: np.ndarray, numbers: np.ndarray, offset: int) -> None:
        """Count the lower bits of pixels of classes `rows` in the critical bins; see `_count_upper`."""
        found: list[np.ndarray] = []
        for bins, slots in self._layers:
            starts = ((bins - offset) << LOWER_BITS).astype(np.uint32).view(np.int32)  # the smallest number of a bin
            firsts = (slots << LOWER_BITS).astype(np.int32)
            for part, above, inside in _chunks(len(numbers), np.uint32, np.bool_):
                classes = rows[part]
                cv2.LUT(classes, starts, dst=above.view(np.int32))
                np.subtract(numbers[part], above, out=above)
                np.less(above, LOWER, out=inside)
                index = above[inside].view(np.int32)
                if index.size:
                    index += cv2.LUT(classes[inside], firsts).reshape(-1)
                    found.append(index)
        if found:
            self._lower += np.bincount(np.concatenate(found), minlength=self._lower.size).reshape(-1, LOWER)

    # -- thresholds ----------------------------------------------------------------------------------------------

    def refine(self, policies: Sequence[str], portions: Sequence[float]) -> bool:
        """Go on to step 2 for the thresholds of all `policies` at all `portions`.

        Parameters
        ----------
        policies : sequence of {"global", "class-balanced"}
        portions : sequence of float
            p in (0, 1].

        Returns
        -------
        bool
            Whether every image has to be added once more. False where these thresholds are known exactly already.

        Raises
        ------
        ConfigError
            If an argument is not allowed.
        DataError
            If no image has been counted.
        """
        self._check_counted()
        wanted = set()
        for policy in policies:
            for portion in portions:
                check_policy(policy, portion)
                ranks = POLICIES[policy](portion, self.counts, self.fidelity)
                wanted |= {self._locate(found).place for found in set(ranks) if isinstance(found, Rank)}
        if not wanted or not self._any_lower:
            return False
        if self.refining and wanted <= set(self._critical.tolist()):
            return bool(self.pending(self._names))
        self._start_step_2(np.array(sorted(wanted), dtype=np.int64), digest_of(self.names))
        return True

    @property
    def critical(self) -> np.ndarray:
        """Indices of the bins counted in step 2: class * UPPER + upper bits, class C being all; int64, sorted."""
        return self._critical

    def thresholds(self, policy: str, portion: float) -> Thresholds:
        """Determine k (Algorithm 1, `policy` "global") or k_c (Algorithm 2, `policy` "class-balanced").

        Parameters
        ----------
        policy : {"global", "class-balanced"}
        portion : float
            p in (0, 1].

        Raises
        ------
        ConfigError
            If an argument is not allowed.
        DataError
            If no image has been counted, the thresholds need a second pass that has not been made, or the second pass
            saw other values than the first.
        """

        def value(wanted: Rank) -> float:
            return float(self._value(self._locate(wanted)))

        self._check_counted()
        if not self.counts.any():
            raise DataError("no pixel of the target set has a confidence above 0: all maps hold zeros only")
        return find_values(policy, portion, self.counts, self.fidelity, value)

    def _check_counted(self) -> None:
        if not self._names:
            raise DataError("no image was added to the counts of confidences: the target set is empty")

    def _locate(self, wanted: Rank) -> _Critical:
        """Return where the value of a rank lies."""
        low, high = self._range
        used = self._bins[:, low:high]
        bins = used.sum(axis=0) if wanted.pool == self.num_classes else used[wanted.pool]
        reached = np.cumsum(bins[::-1])  # values in this bin and those above
        place = int(np.searchsorted(reached, wanted.position))
        count = int(bins[::-1][place])
        above = int(reached[place]) - count
        return _Critical(wanted.pool * UPPER + high - 1 - place, wanted.position - above, count)

    def _value(self, critical: _Critical) -> np.float32:
        start = critical.place % UPPER << LOWER_BITS
        if not self._any_lower:
            return value_of(start)
        slot = int(np.searchsorted(self._critical, critical.place))
        if slot == len(self._critical) or self._critical[slot] != critical.place or self.pending(self._names):
            raise DataError("these thresholds need every image to be counted a second time: call refine first")
        reached = np.cumsum(self._lower[slot][::-1])
        if reached[-1] != critical.total:
            raise DataError(
                f"the second pass must see the values of the first: it met {reached[-1]} where there were "
                f"{critical.total}, so the maps have changed in between"
            )
        place = int(np.searchsorted(reached, critical.position))
        return value_of(start + LOWER - 1 - place)

    def _start_step_2(self, critical: np.ndarray, first: str) -> None:
        self._first = first
        self._critical = critical
        self._lower = np.zeros((len(critical), LOWER), dtype=np.int64)
        self._lower_names = {}
        # Layers of at most one bin per class: bins and slots by class. A bin of all classes together fills a layer.
        self._layers = []
        filled = np.zeros(self.num_classes, dtype=np.int64)
        for slot, place in enumerate(critical):
            row, upper = divmod(int(place), UPPER)
            members = slice(None) if row == self.num_classes else slice(row, row + 1)
            layer = len(self._layers) if row == self.num_classes else int(filled[row])
            if layer == len(self._layers):
                self._layers.append((np.full(256, _NOWHERE), np.zeros(256, dtype=np.int64)))
            bins, slots = self._layers[layer]
            bins[members], slots[members] = upper, slot
            if row < self.num_classes:
                filled[row] += 1

    def reached(self, thresholds: Thresholds) -> np.ndarray:
        """Return how many pixels of each class are at or above the threshold of their class, int64 (C,).

        Parameters
        ----------
        thresholds : Thresholds
            What :meth:`thresholds` gave.
        """
        found = np.zeros(self.num_classes, dtype=np.int64)
        for row, value in enumerate(thresholds.values):
            if not np.isfinite(value):
                continue
            key = int(keys_of(np.array([value]))[0])
            upper = key >> LOWER_BITS
            found[row] = self._bins[row, upper + 1 :].sum()
            place = row * UPPER + upper
            slot = int(np.searchsorted(self._critical, place))
            if self._any_lower and slot < len(self._critical) and self._critical[slot] == place:
                found[row] += self._lower[slot, key % LOWER :].sum()
            else:  # all of the bin, at most 1/1024 of an octave below the threshold
                found[row] += self._bins[row, upper]
        return found

    # -- several processes, files --------------------------------------------------------------------------------

    def part(self) -> StreamingThresholds:
        """Return an empty state of the present step, for another process to count some of the images and be merged.

        In step 2 it holds a digest of the names of step 1 in their place, so that its size does not depend on how many
        images there are: whether an image is one of them is looked at when it is merged.
        """
        part = StreamingThresholds(self.num_classes, fidelity=self.fidelity)
        if self._lower_names is not None:
            part._start_step_2(self._critical, self._first)
        return part

    def merge(self, other: StreamingThresholds) -> None:
        """Add the images counted by `other` in the present step.

        In step 2 both must go on from the same counts of step 1 (`other` may also be a :meth:`part` of this state).

        Raises
        ------
        DataError
            If the states do not fit together or an image has been counted in both; then nothing is added.
        """
        if (other.num_classes, other.fidelity) != (self.num_classes, self.fidelity):
            raise DataError(
                f"states to merge must be of {self.num_classes} classes and fidelity {self.fidelity}, "
                f"got {other.num_classes} and {other.fidelity}"
            )
        if other.refining != self.refining:
            raise DataError("states to merge must be of the same pass, got one of the first and one of the second")
        ours = self._names if self._lower_names is None else self._lower_names
        theirs = other._names if other._lower_names is None else other._lower_names
        twice = sorted(ours.keys() & theirs.keys())
        if twice:
            raise DataError(f"states to merge must be of different images, got {twice[0]} in both")
        low, high = other._range
        if self.refining:
            same = self._range == other._range and np.array_equal(self._bins[:, low:high], other._bins[:, low:high])
            if self._first != other._first or not (same or low >= high):
                raise DataError("states of the second pass must go on from the same counts of the first, got others")
            for name in theirs if self._names else ():  # a part has not looked
                if name not in self._names:
                    raise DataError(f"image {name} must be one of those counted in the first pass, it is not")
            if not np.array_equal(self._critical, other._critical):
                raise DataError("states of the second pass must be for the same policies and portions, got others")
            self._lower += other._lower
        elif low < high:
            self._bins[:, low:high] += other._bins[:, low:high]
            self._any_lower |= other._any_lower
            self._widen(np.array([low, high - 1]))
        ours.update(theirs)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays without objects; only bins in use are in it."""
        low, high = self._range
        used = self._bins[:, low : max(low, high)]
        row, column = np.nonzero(used)
        slot, lower = np.nonzero(self._lower)
        return {
            "format": np.array(_FORMAT),
            "num_classes": np.array(self.num_classes),
            "fidelity": np.array(self.fidelity),
            "names": pack_names(self.names),
            "bins": row * UPPER + column + low,
            "counts": used[row, column],
            "any_lower": np.array(self._any_lower),
            "refining": np.array(self.refining),
            "critical": self._critical,
            "lower": slot * LOWER + lower,
            "lower_counts": self._lower[slot, lower],
            "lower_names": pack_names(sorted(self._lower_names or ())),
            "first_names": np.array(self._first),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> StreamingThresholds:
        """Return the state that :meth:`to_arrays` has given.

        Raises
        ------
        ValueError, KeyError
            If the arrays are no such state.
        """
        if int(arrays["format"]) not in (1, _FORMAT):
            raise ValueError(f"it is of format {int(arrays['format'])}, this version reads formats up to {_FORMAT}")
        num_classes, fidelity = int(arrays["num_classes"]), str(arrays["fidelity"])
        check_fidelity(fidelity)
        state = cls(num_classes, fidelity=fidelity)
        bins, critical, lower = (arrays[key].astype(np.int64) for key in ("bins", "critical", "lower"))
        for what, index, end in (
            ("bins", bins, num_classes * UPPER),
            ("critical", critical, (num_classes + 1) * UPPER),
            ("lower", lower, len(critical) * LOWER),
        ):
            if index.ndim != 1 or (index < 0).any() or (index >= end).any() or (np.diff(index) <= 0).any():
                raise ValueError(f"its array {what} is damaged")
        for what, counts, index in (
            ("counts", arrays["counts"], bins),
            ("lower_counts", arrays["lower_counts"], lower),
        ):
            if counts.shape != index.shape or counts.dtype != np.int64 or (counts < 0).any():
                raise ValueError(f"its array {what} is damaged")
        np.put(state._bins, bins, arrays["counts"])
        state._widen(bins % UPPER)
        state._any_lower = bool(arrays["any_lower"])
        state._names = dict.fromkeys(unpack_names(arrays["names"]))
        if bool(arrays["refining"]):
            first = arrays.get("first_names", "")  # format 1 has the names themselves, of parts too
            state._start_step_2(critical, str(first) or digest_of(state.names))
            np.put(state._lower, lower, arrays["lower_counts"])
            state._lower_names = dict.fromkeys(unpack_names(arrays["lower_names"]))
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamingThresholds.from_arrays, (self.to_arrays(),)  # without the bins that are not in use


def _chunks(length: int, *dtypes: Any) -> Iterator[tuple[Any, ...]]:
    """Yield slices of `length` numbers, each with arrays of its length to work in, the same ones again and again."""
    arrays = [np.empty(min(length, _CHUNK), dtype=dtype) for dtype in dtypes]
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        yield (slice(start, stop), *(array[: stop - start] for array in arrays))


def _every_fourth(rows: np.ndarray) -> np.ndarray:
    """Return the places of every 4th pixel of each class, in raster order, starting with its first."""
    order = np.argsort(rows, kind="stable")  # classes one after the other, in raster order within each
    counts = np.bincount(rows)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return order[(np.arange(len(order)) - starts) % RELEASED_STEP == 0]
