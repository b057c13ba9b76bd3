"""The network's output on the target images, looked at as often as pseudo-labelling needs it.

C classes, N images of H x W pixels. Labels take two looks at all images where confidences are sorted (small sets) and
up to three where they are counted: the count, that in the critical bins if thresholds need it, the selection. Between
the looks the network's own output is kept: at stride s, 1 / s^2 of a full-size map; every look upsamples it again, with
the same result to the last bit. Full-size maps are never kept on disk: 19 classes of 1024 x 2048 pixels take 159 MB an
image.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.errors import ConfigError
from cbst_mx.files import atomic_path
from cbst_mx.selftrain import spatial_prior
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.network_maps import cells, full_size, probabilities
from cbst_mx.selftrain.thresholds import Thresholds
from cbst_mx.selftrain.views import DeviceMap, HostMap
from symbols.backend import gluon, mx

__all__ = ["KEEP", "SORTED_PIXELS", "TargetMaps", "find_thresholds", "maps_needed"]

KEEP = ("auto", "memory", "disk", "recompute")
_MEMORY = 256 << 20  # bytes of maps that "auto" keeps in memory
#: Target sets of up to this many pixels are sorted (5 bytes a pixel), larger ones counted; the result is the same.
SORTED_PIXELS = 1 << 24


class _Output(NamedTuple):
    """What the network gave for one image, or the file that holds it; see :func:`.network_maps.cells`."""

    maps: Any
    part: tuple[int, int]
    size: tuple[int, int]  # of the image


def maps_needed(
    images: int,
    size: tuple[int, int],
    *,
    num_classes: int,
    stride: int,
    keep: str = "auto",
    scales: Sequence[float] = (1.0,),
    long_side: int | None = None,
) -> tuple[str, int]:
    """Return where the network's output stays between the looks, and how much it is.

    Parameters
    ----------
    images : int
        N.
    size : tuple of int
        H and W.
    num_classes, stride : int
        Of the network.
    keep, scales, long_side
        As for :class:`TargetMaps`.

    Returns
    -------
    keep : {"memory", "disk", "recompute"}
    bytes : int
        Of all maps, if they were kept.

    Raises
    ------
    ConfigError
        If `keep` is unknown.
    """
    if keep not in KEEP:
        raise ConfigError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    grid = (long_side / max(size) if long_side else 1.0) / stride
    needed = int(images * 4 * num_classes * np.ceil(size[0] * grid) * np.ceil(size[1] * grid))
    if len(scales) > 1:
        return "recompute", needed
    if keep == "auto":
        keep = "memory" if needed <= _MEMORY else "disk" if stride > 1 else "recompute"
    return keep, needed


class TargetMaps:
    """The maps of all target images; every iteration looks at all of them, in order.

    Parameters
    ----------
    network : HybridBlock
        See :func:`.network_maps.cells`.
    images : ImageSet
        The target images.
    num_classes : int
        C.
    folder : Path
        Where maps are kept on disk; removed by :meth:`close`.
    ctx : mx.Context
        The network's context. On a GPU maps are upsampled, counted and selected there.
    prior : ndarray of shape (C, h, w), float32, optional
        Spatial prior q_n(c), multiplied into the probabilities (eq. 9); resized to every image.
    keep : {"auto", "memory", "disk", "recompute"}
        Where the network's output stays between the looks; "recompute" runs the network again. "auto" takes memory for
        up to 256 MB in all, else disk for networks with a stride, else recomputes.
    scales, combine
        See :func:`.network_maps.probabilities`. With several scales there is no map at the network's stride: it is run
        again for every look.
    interpolation : {"bilinear", "bicubic"}
        How the network's output is upsampled; bicubic always in the computer's memory, and for one scale.
    on_device : bool, optional
        Work on full-size NDArrays; by default on GPUs only.
    **options
        mean, std, flip, long_side as for :func:`.network_maps.cells`.
    """

    def __init__(
        self,
        network: gluon.HybridBlock,
        images: ImageSet,
        *,
        num_classes: int,
        folder: Path,
        ctx: mx.Context,
        prior: np.ndarray | None = None,
        keep: str = "auto",
        scales: Sequence[float] = (1.0,),
        interpolation: str = "bilinear",
        on_device: bool | None = None,
        **options: Any,
    ):
        self._network, self._images, self._ctx, self._prior = network, images, ctx, prior
        self._scales, self._options = tuple(scales), options
        if interpolation != "bilinear" and (len(self._scales) > 1 or on_device):
            raise ConfigError(
                f"interpolation must be bilinear with several scales or on the device, got {interpolation!r}"
            )
        self._interpolation = interpolation
        if on_device is None:
            on_device = ctx.device_type == "gpu" and interpolation == "bilinear"
        self._on_device = on_device
        self._folder = Path(folder)
        self._kept: dict[int, _Output] = {}
        self._priors: dict[tuple[int, ...], Any] = {}
        height, width = images.image(0).shape[:2]
        #: Pixels of all images, judged by the first.
        self.pixels = len(images) * height * width
        #: Where maps are kept ("memory", "disk" or "recompute"), and the bytes of all of them.
        self.keep, self.bytes = maps_needed(
            len(images),
            (height, width),
            num_classes=num_classes,
            stride=network.stride,
            keep=keep,
            scales=scales,
            long_side=options.get("long_side"),
        )

    def __iter__(self) -> Iterator[tuple[str, HostMap | DeviceMap]]:
        """Yield name and map of every image."""
        for index, name in enumerate(self._images.names):
            if len(self._scales) > 1:
                yield name, self._of_several_scales(self._images.image(index))
                continue
            if index in self._kept:
                output = self._kept[index]
            else:
                image = self._images.image(index)
                maps, part = cells(self._network, [image], ctx=self._ctx, scale=self._scales[0], **self._options)
                output = _Output(maps[0], part, (image.shape[0], image.shape[1]))
                if self.keep != "recompute":
                    self._kept[index] = self._store(name, output)
            yield name, self._map(output)

    def __len__(self) -> int:
        return len(self._images)

    def close(self) -> None:
        """Forget all maps and remove those on disk."""
        self._kept.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- one image -------------------------------------------------------------------------------------------------

    def _store(self, name: str, output: _Output) -> _Output:
        array = output.maps.asnumpy()
        if self.keep == "memory":
            return output._replace(maps=array)
        path = self._folder / f"{name}.npy"
        with atomic_path(path, durable=False) as temporary, open(temporary, "wb") as stream:
            np.save(stream, array)
        return output._replace(maps=path)

    def _map(self, output: _Output) -> HostMap | DeviceMap:
        maps = np.load(output.maps) if isinstance(output.maps, Path) else output.maps
        stride = self._network.stride
        if self._on_device:
            whole = maps if isinstance(maps, mx.nd.NDArray) else mx.nd.array(maps, ctx=self._ctx)
            return DeviceMap(self._times_prior(full_size(whole.expand_dims(0), stride, output.part, output.size)[0]))
        array = maps.asnumpy() if isinstance(maps, mx.nd.NDArray) else maps
        extent = (output.part[0] / stride, output.part[1] / stride)
        view = ClassMaps(array, output.size, interpolation=self._interpolation, extent=extent)
        return HostMap(view, self._prior_of(output.size, ClassMaps))

    def _of_several_scales(self, image: np.ndarray) -> DeviceMap:
        maps = probabilities(self._network, [image], ctx=self._ctx, scales=self._scales, **self._options)
        return DeviceMap(self._times_prior(maps[0]))

    def _times_prior(self, probability: mx.nd.NDArray) -> mx.nd.NDArray:
        def resized(prior: np.ndarray, size: tuple[int, int]) -> mx.nd.NDArray:
            return mx.nd.array(spatial_prior.resized(prior, size), ctx=self._ctx)

        prior = self._prior_of(probability.shape[1:], resized)
        return probability if prior is None else probability * prior

    def _prior_of(self, size: tuple[int, ...], make: Callable[[np.ndarray, tuple[int, int]], Any]) -> Any:
        """Return what `make` makes of the prior and an image's size; it is kept for the next image."""
        if self._prior is None:
            return None
        if size not in self._priors:
            self._priors = {size: make(self._prior, (size[0], size[1]))}
        return self._priors[size]


def find_thresholds(
    maps: TargetMaps,
    *,
    num_classes: int,
    fidelity: str,
    policy: str,
    portion: float,
    progress: Callable[[], None],
    sorted_pixels: int = SORTED_PIXELS,
) -> tuple[Thresholds, ImageStatistics]:
    """Determine the thresholds of a target set, by sorting where it is small and by counting where it is not.

    Parameters
    ----------
    maps : TargetMaps
        The maps.
    num_classes : int
        C.
    fidelity, policy, portion
        See :class:`.thresholds.Thresholds`.
    progress : callable
        Called after every image of every look.
    sorted_pixels : int
        Sets of up to this many pixels are sorted, on the context of the maps; larger ones are counted.

    Returns
    -------
    thresholds : Thresholds
        The same either way.
    statistics : ImageStatistics
        Of the predictions, per image and class.
    """
    statistics = ImageStatistics(num_classes)
    small = maps.pixels <= sorted_pixels
    pool = ConfidencePool(num_classes, fidelity=fidelity)
    state = StreamingThresholds(num_classes, fidelity=fidelity)
    for name, view in maps:
        if small:
            view.sort_into(pool)
        else:
            view.count_into(state, name)
        values, predicted = view.confidence
        flat = predicted.reshape(-1)
        counts = np.bincount(flat, minlength=num_classes)
        statistics.add(name, counts, np.bincount(flat, weights=values.reshape(-1), minlength=num_classes))
        progress()
    if small:
        return pool.thresholds(policy, portion), statistics
    if state.refine([policy], [portion]):
        for name, view in maps:
            view.count_into(state, name)
            progress()
    return state.thresholds(policy, portion), statistics
