"""Step a) of a round on arrays of any framework: thresholds, confidence and pseudo-labels. Needs no mxnet.

C classes, H x W pixels, p the portion in (0, 1], k_c in nats. The functions here are for notebooks and other programs;
the modules beside them do the same for sets of any size, in files and on devices.

>>> import numpy as np
>>> from cbst_mx import selftrain
>>> rng = np.random.default_rng(0)
>>> logits = 3 * rng.standard_normal((2, 3, 40, 60))  # two images, three classes
>>> maps = list(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
>>> thresholds = selftrain.thresholds(maps, portion=0.2)  # Algorithm 2; policy="st" is Algorithm 1
>>> thresholds.k.round(3)  # k_c
array([0.021, 0.022, 0.019])
>>> labels = [selftrain.pseudo_labels(one, thresholds) for one in maps]  # eq. 8; 255 = not selected
>>> labels[0].dtype, labels[0].shape, round(float((np.array(labels) != 255).mean()), 3)
(dtype('uint8'), (40, 60), 0.2)
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any, Iterable, Iterator, Sequence, Tuple

import numpy as np

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.selftrain.class_maps import ClassMaps, size_at_stride
from cbst_mx.selftrain.counting import MOST_CLASSES, StreamingThresholds
from cbst_mx.selftrain.map_checks import check_origin, check_sums
from cbst_mx.selftrain.portion import portion
from cbst_mx.selftrain.pseudo_labels import check_range
from cbst_mx.selftrain.selection import Labelling, collect, passes, remarks
from cbst_mx.selftrain.thresholds import Thresholds, check_policy, threshold_rule
from cbst_mx.selftrain.views import HostMap

__all__ = ["Thresholds", "confidence", "portion", "pseudo_labels", "thresholds"]

Size = Tuple[int, int]
_UNBOUNDED = ("prior", "scores")  # origins whose values may be far above 1


def thresholds(
    maps: Iterable[np.ndarray],
    *,
    portion: float = 0.2,
    policy: str = "cbst",
    prior: np.ndarray | None = None,
    stride: int = 1,
    size: Size | Sequence[Size] | None = None,
    interpolation: str = "bilinear",
    origin: str = "plain",
    fidelity: str = "paper",
) -> Thresholds:
    """Determine the thresholds exp(-k) or exp(-k_c) of a target set, exactly, over all pixels of all images.

    Parameters
    ----------
    maps : iterable of ndarray of shape (C, h, w) or (1, C, h, w), float
        Class probabilities p_n(c), one array per image: a list, or anything that can be iterated more than once, since
        a second pass may be needed. Of float types other than float32 and float16 float32 is taken.
    portion : float
        p in (0, 1].
    policy : {"cbst", "st", "cbst-sp", "class-balanced", "global"}
        Algorithm 2, one threshold per class ("cbst", "class-balanced"; "cbst-sp" is the same with a `prior`), or
        Algorithm 1, one for all classes ("st", "global").
    prior : ndarray of shape (C, y, x), float, optional
        Spatial prior q_n(c) of any size, at least 0 (eq. 9); resized to every image.
    stride : int
        Pixels per cell of the maps along each side; 1 for maps at full size.
    size : (int, int) or sequence of (int, int), optional
        (H, W) of all images, or of each one, where they are not `stride` times the map.
    interpolation : {"bilinear", "bicubic", "pillow"}
        How maps at a stride are upsampled: as networks of this package do, as OpenCV does, or as the authors' program
        does with Pillow.
    origin : {"plain", "bicubic", "maximum", "prior", "scores"}
        What the classes of a pixel sum to: 1 in "plain" maps; see ``cbst_mx.selftrain.map_checks.ORIGINS``.
    fidelity : {"paper", "released"}
        Rules of the paper, or of the authors' released program; see ``cbst_mx.selftrain.thresholds``.

    Returns
    -------
    Thresholds
        ``values`` exp(-k_c), float32 (C,); ``k`` k_c in nats; ``counts`` N_c.

    Raises
    ------
    ConfigError
        If an argument is not allowed.
    DataError
        If a map or the prior cannot be used; the sentence has the map's number.

    Warns
    -----
    UserWarning
        If all pixels are of one class, or far more pixels reach their threshold than were asked for.
    """
    rule = _rule(policy, prior)
    if iter(maps) is maps:
        raise ConfigError(
            "maps must be readable more than once, got an iterator, which can be read only once: give list(maps), or "
            "an object whose __iter__ starts anew"
        )
    check_policy(rule, portion)
    check_origin(origin)
    first = next(iter(maps), None)
    if first is None:
        raise DataError("maps must hold at least one map, got none")
    state = StreamingThresholds(len(_probabilities(first, origin, "map 0")), fidelity=fidelity)
    priors: dict[Size, ClassMaps] = {}
    sizes = itertools.repeat(size) if size is None or isinstance(size[0], int) else size
    for _ in passes(state, [rule], [portion]):
        for index, (array, own_size) in enumerate(_paired(maps, sizes)):
            view = _view(
                array, prior, stride, own_size, interpolation, origin, f"map {index}", priors, state.num_classes
            )
            collect(str(index), view, state)
    found = state.thresholds(rule, portion)
    reached = Labelling(found, state.reached(found), int(state.counts.sum()), int(state.counts.sum()))
    for sentence in remarks(reached, state.counts):
        warnings.warn(sentence, stacklevel=2)
    return found


def confidence(
    probabilities: np.ndarray,
    *,
    prior: np.ndarray | None = None,
    stride: int = 1,
    size: Size | None = None,
    interpolation: str = "bilinear",
    origin: str = "plain",
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and predicted class of every pixel of an image.

    Parameters
    ----------
    probabilities : ndarray of shape (C, h, w) or (1, C, h, w), float
        p_n(c).
    prior, stride, size, interpolation, origin
        As for :func:`thresholds`.

    Returns
    -------
    confidence : ndarray of shape (H, W), float32
        max_c p_n(c), or of q_n(c) * p_n(c).
    predicted : ndarray of shape (H, W), uint8
        argmax_c of the same; the first class where several are equal.

    Raises
    ------
    ConfigError, DataError
        As :func:`thresholds`.
    """
    return _view(probabilities, prior, stride, size, interpolation, origin).confidence


def pseudo_labels(
    probabilities: np.ndarray,
    thresholds: Thresholds,
    *,
    prior: np.ndarray | None = None,
    stride: int = 1,
    size: Size | None = None,
    interpolation: str = "bilinear",
    origin: str = "plain",
) -> np.ndarray:
    """Return the pseudo-label of every pixel of an image (eq. 8; eq. 5 with one threshold, eq. 9 with a prior).

    The class is argmax_c p_n(c) / exp(-k_c); it is kept where some class reaches its threshold.

    Parameters
    ----------
    probabilities : ndarray of shape (C, h, w) or (1, C, h, w), float
        p_n(c).
    thresholds : Thresholds
        What :func:`thresholds` gave, with the same `prior`, `stride` and `interpolation`.
    prior, stride, size, interpolation, origin
        As for :func:`thresholds`.

    Returns
    -------
    ndarray of shape (H, W), uint8
        TrainIds, 255 where the pixel is not selected.

    Raises
    ------
    ConfigError, DataError
        As :func:`thresholds`.
    """
    if not isinstance(thresholds, Thresholds):
        raise ConfigError(f"thresholds must be what selftrain.thresholds returns, got {type(thresholds).__name__}")
    view = _view(probabilities, prior, stride, size, interpolation, origin, num_classes=len(thresholds.values))
    return view.select([thresholds])[0]


def _rule(policy: str, prior: np.ndarray | None) -> str:
    """Return the threshold rule of a policy; "cbst-sp" says that there is a prior."""
    if policy == "cbst-sp" and prior is None:
        raise ConfigError("policy cbst-sp needs a prior: give prior=, or policy='cbst'")
    return threshold_rule(policy)


def _paired(maps: Iterable[np.ndarray], sizes: Iterable[Any]) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield every map with its size; refuse more maps than sizes, and fewer."""
    missing: Any = object()
    # an endless repetition of one size is longer than any list of maps
    endless = isinstance(sizes, itertools.repeat)
    pairs = zip(maps, sizes) if endless else itertools.zip_longest(maps, sizes, fillvalue=missing)
    for index, (array, size) in enumerate(pairs):
        if array is missing or size is missing:
            raise ConfigError(f"size must be one (H, W) or as many as there are maps, {index} are in both")
        yield array, size


def _view(
    array: np.ndarray,
    prior: np.ndarray | None,
    stride: int,
    size: Size | None,
    interpolation: str,
    origin: str,
    what: str = "probabilities",
    priors: dict[Size, ClassMaps] | None = None,
    num_classes: int | None = None,
) -> HostMap:
    """Return one image as the pass sees it; `priors` keeps the prior for further images of one size."""
    values = _probabilities(array, origin, what)
    bounded = origin not in _UNBOUNDED
    if num_classes is not None and len(values) != num_classes:
        raise DataError(f"{what} must have {num_classes} classes, got shape {values.shape}")
    full = size_at_stride(values.shape, stride, size, what)
    maps = ClassMaps.at_stride(values, full, stride, interpolation=interpolation)
    if prior is None:
        return HostMap(maps, None, what, bounded=bounded)
    kept = {} if priors is None else priors
    if maps.size not in kept:
        from cbst_mx.selftrain import spatial_prior  # scipy and the readers take half a second

        q = spatial_prior.checked(prior, "prior")
        spatial_prior.check_not_zero(q, "prior")
        if len(q) != len(values):
            raise DataError(f"prior must have the {len(values)} classes of the maps, got shape {q.shape}")
        kept.clear()
        kept[maps.size] = ClassMaps(spatial_prior.within_one(q), maps.size)
    return HostMap(maps, kept[maps.size], what, bounded=bounded)


def _probabilities(array: Any, origin: str, what: str) -> np.ndarray:
    """Return class probabilities as float32 or float16; refuse what cannot be any."""
    values = np.asarray(array)
    if values.dtype.kind != "f":
        raise DataError(f"{what} must hold probabilities of a float type, got {values.dtype}")
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim != 3 or 0 in values.shape:
        raise DataError(f"{what} must be of shape (C, H, W), got {values.shape}")
    if len(values) > MOST_CLASSES:
        raise DataError(f"{what} must have at most {MOST_CLASSES} classes, got shape {values.shape} (classes first)")
    if values.dtype not in (np.float32, np.float16):
        values = values.astype(np.float32)
    try:
        check_sums(values, origin)
        check_range(float(values.min()), float(values.max()), bounded=origin not in _UNBOUNDED)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    return values
