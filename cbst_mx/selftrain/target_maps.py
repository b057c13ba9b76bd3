"""The network's output on the target images, kept between the passes of pseudo-labelling.

C classes, N images of H x W pixels. Pseudo-labelling reads every image two or three times: to collect confidences, once
more in the critical bins if counted thresholds need it, and to select. Between the passes the network's own output is
kept: at stride s, 1 / s^2 of a full-size map. Every pass upsamples it again, with the same result to the last bit,
wherever that is computed. Full-size maps are never kept on disk: 19 classes of 1024 x 2048 pixels take 159 MB an image;
of a set that is not too large `compact_maps` keeps them in memory.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from cbst_mx.data.ahead import one_step_later, read_ahead
from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_files import Draft
from cbst_mx.errors import RunError, check_choice
from cbst_mx.files import reading, remove_folder, save_npy
from cbst_mx.selftrain import on_device, spatial_prior
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.compact_maps import PIXEL_BYTES, CompactMap, CompactView
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.interpolation import check_interpolation
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.network_maps import probabilities, reader, stride_probabilities
from cbst_mx.selftrain.selection import Collector
from cbst_mx.selftrain.thresholds import Thresholds
from cbst_mx.selftrain.views import HostMap, View
from symbols.backend import gluon, mx

__all__ = ["KEEP", "SORTED_PIXELS", "DeviceMap", "TargetMaps", "maps_needed"]

KEEP = ("auto", "memory", "compact", "disk", "recompute")
_AHEAD = 2  # images that a thread reads ahead
_MEMORY = 256 << 20  # bytes of maps that "auto" keeps in memory
_COMPACT_MEMORY = 1 << 30  # and of compact ones, instead of which the network would run again
#: Target sets of up to this many pixels are sorted (5 bytes a pixel), larger ones counted; the result is the same.
SORTED_PIXELS = 1 << 24


class DeviceMap:
    """One image's full-size map on a device, where everything is computed: a ``views.View``.

    Parameters
    ----------
    probability : NDArray of shape (C, H, W), float32
        p_n(c), or q_n(c) * p_n(c).
    """

    def __init__(self, probability: mx.nd.NDArray):
        self._probability = probability

    @functools.cached_property
    def _pixels(self) -> tuple[mx.nd.NDArray, mx.nd.NDArray]:
        return on_device.confidence(self._probability)

    @property
    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence, float32, and predicted class, uint8, both (H, W)."""
        value, predicted = self._pixels
        return value.asnumpy(), predicted.asnumpy().astype(np.uint8)

    def sort_into(self, pool: ConfidencePool) -> None:
        """Add the pixels to a pool that sorts them."""
        pool.add_pixels(*self._pixels)

    def count_into(self, state: StreamingThresholds, name: str) -> None:
        """Add the pixels to a state that counts them."""
        on_device.count_on_device(state, name, *self._pixels)

    def select(self, thresholds: Sequence[Thresholds]) -> list[np.ndarray]:
        """Return the pseudo-labels for each of several thresholds, uint8 (H, W), 255 = not selected."""
        return [on_device.select(self._probability, chosen) for chosen in thresholds]


class _Output(NamedTuple):
    """Network's output for one image, or the file that holds it: what ``stride_probabilities`` returns."""

    maps: Any
    part: tuple[int, int]
    size: tuple[int, int]  # H and W of the image


def maps_needed(
    images: int,
    size: tuple[int, int],
    *,
    num_classes: int,
    stride: int,
    keep: str = "auto",
    scales: Sequence[float] = (1.0,),
    long_side: int | None = None,
    whole: bool = False,
) -> tuple[str, int]:
    """Return where the network's output stays between the passes, and how much it is.

    Parameters
    ----------
    images : int
        N.
    size : tuple of int
        H and W.
    num_classes, stride : int
        Number of classes C and stride of the network.
    keep, scales, long_side
        As for :class:`TargetMaps`.
    whole : bool
        Whether compact maps do not do: with a spatial prior, or on a GPU.

    Returns
    -------
    keep : {"memory", "compact", "disk", "recompute"}
    bytes : int
        Size of all maps, if they were kept; of compact ones, what is set aside for them.

    Raises
    ------
    ConfigError
        If `keep` is unknown.
    """
    check_choice("keep", keep, KEEP)
    grid = (long_side / max(size) if long_side else 1.0) / stride
    needed = int(images * 4 * num_classes * np.ceil(size[0] * grid) * np.ceil(size[1] * grid))
    if len(scales) > 1:
        return "recompute", needed
    if keep == "auto":
        keep = "memory" if needed <= _MEMORY else "disk" if stride > 1 else "compact"
    compact = images * PIXEL_BYTES * size[0] * size[1]
    if keep != "compact":
        return keep, needed
    fits = compact <= _COMPACT_MEMORY and stride == 1 and not (long_side or whole)
    return ("compact", compact) if fits else ("recompute", needed)


class TargetMaps:
    """The maps of all target images, as views; every iteration is a pass over all of them, in order.

    Parameters
    ----------
    network : HybridBlock
        See :func:`.network_maps.stride_probabilities`.
    images : ImageSet
        The target images.
    num_classes : int
        Number of classes C.
    folder : Path
        Where maps are kept on disk; removed by :meth:`close`.
    ctx : mx.Context
        The network's context. On a GPU maps are upsampled, counted and selected there.
    prior : ndarray of shape (C, h, w), float32, optional
        Spatial prior q_n(c), multiplied into the probabilities (eq. 9); resized to every image.
    keep : {"auto", "memory", "compact", "disk", "recompute"}
        Where the network's output stays between the passes; "recompute" runs the network again. "auto" takes memory for
        up to 256 MB in all, else disk for networks with a stride. For those without, whose maps have the image's size,
        it takes compact maps ("compact"), in memory, for up to 1 GB in all, else recomputes; on a GPU, with a prior or
        with a `long_side` there are none.
    scales, combine
        See :func:`.network_maps.probabilities`. With several scales there is no map at the network's stride: it is run
        again for every pass.
    interpolation : {"bilinear", "bicubic", "pillow"}
        How the network's output is upsampled.
    on_device : bool, optional
        Work on full-size NDArrays; by default on GPUs only.
    **options
        mean, std, flip, long_side, resampling as for :func:`.network_maps.stride_probabilities`.
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
        self._num_classes = num_classes
        self._scales, self._options = tuple(scales), options
        size = {key: options[key] for key in ("resampling", "long_side") if key in options}
        self._read = reader(images, scales=self._scales, **size)
        check_interpolation(interpolation)
        self._interpolation = interpolation
        self._on_device = ctx.device_type == "gpu" if on_device is None else on_device
        self._folder = Path(folder)
        self._kept: dict[int, _Output] = {}
        self._sure: dict[int, tuple[int, int]] = {}  # cells of an image that have a probability of 1, and all
        self._priors: dict[tuple[int, ...], Any] = {}
        height, width = images.image(0).shape[:2]
        #: Pixels of all images, if they have the size of the first one.
        self.pixels = len(images) * height * width
        #: Where maps are kept ("memory", "compact", "disk" or "recompute"), and the bytes of all of them.
        self.keep, self.bytes = maps_needed(
            len(images),
            (height, width),
            num_classes=num_classes,
            stride=network.stride,
            keep=keep,
            scales=scales,
            long_side=options.get("long_side"),
            whole=prior is not None or self._on_device,
        )
        self._room = self.bytes  # for compact maps

    def __iter__(self) -> Iterator[tuple[str, View]]:
        """Yield name and map of every image."""
        names = self._images.names
        new = [index for index in range(len(names)) if index not in self._kept]
        images = zip(new, read_ahead(map(self._read, new), _AHEAD))
        if len(self._scales) > 1:
            for index, image in images:
                yield names[index], self._of_several_scales(index, image)
            return
        computed = one_step_later(map(self._compute, images))
        for index, name in enumerate(names):
            if index in self._kept:
                yield name, self._map(index, self._kept[index])
                continue
            output = self._waited_for(next(computed))
            self._note(index, output.maps)
            if self.keep != "recompute":
                self._store(index, output)
            yield name, self._map(index, output)

    def __len__(self) -> int:
        return len(self._images)

    def collector(self, fidelity: str, sorted_pixels: int = SORTED_PIXELS) -> Collector:
        """Return what turns the confidences into thresholds: sorting for a small set, counting for a large one.

        Parameters
        ----------
        fidelity : {"paper", "released"}
            Whose rules thresholds follow.
        sorted_pixels : int
            Sets of up to this many pixels are sorted, on the context of the maps. The thresholds are the same.
        """
        if self.pixels <= sorted_pixels:
            return ConfidencePool(self._num_classes, fidelity=fidelity)
        return StreamingThresholds(self._num_classes, fidelity=fidelity)

    @property
    def saturated(self) -> float | None:
        """Share of the network's cells that have a probability of exactly 1, before any prior; None before a pass."""
        found, cells = (sum(counts) for counts in zip(*self._sure.values())) if self._sure else (0, 0)
        return found / cells if cells else None

    @property
    def memory(self) -> Any:
        """What has been noted of the images so far, for the maps of the same images in another process to go on with.

        Maps that are kept in memory or on the disk are in it, those on the disk as paths.
        """
        return self._kept, self._sure

    @memory.setter
    def memory(self, noted: Any) -> None:
        self._kept, self._sure = noted

    def close(self) -> None:
        """Forget all maps and remove those on disk."""
        self._kept.clear()
        remove_folder(self._folder)

    # -- one image -------------------------------------------------------------------------------------------------

    def _compute(self, pair: tuple[int, np.ndarray | Draft]) -> _Output:
        _, image = pair
        maps, part = stride_probabilities(self._network, [image], ctx=self._ctx, scale=self._scales[0], **self._options)
        return _Output(maps[0], part, (image.shape[0], image.shape[1]))

    def _waited_for(self, output: _Output) -> _Output:
        return output if self._on_device else output._replace(maps=output.maps.asnumpy())

    def _store(self, index: int, output: _Output) -> None:
        """Keep an image's output for the next passes; of compact maps those that fit."""
        if isinstance(output.maps, mx.nd.NDArray):
            output = output._replace(maps=output.maps.asnumpy())
        if self.keep == "compact":
            compact = CompactMap.of(output.maps) if output.maps.shape[1:] == output.size == output.part else None
            if compact is not None and compact.nbytes <= self._room:
                self._room -= compact.nbytes
                self._kept[index] = output._replace(maps=compact)
            return
        if self.keep == "disk":
            path = self._folder / f"{self._images.names[index]}.npy"
            save_npy(path, output.maps, durable=False)
            output = output._replace(maps=path)
        self._kept[index] = output

    def _again(self, index: int) -> View:
        return self._map(index, self._waited_for(self._compute((index, self._read(index)))))

    def _map(self, index: int, output: _Output) -> View:
        maps, name = output.maps, self._images.names[index]
        if isinstance(maps, CompactMap):
            return CompactView(maps, name, lambda: self._again(index))
        if isinstance(maps, Path):
            with reading(str(maps), RunError):
                maps = np.load(maps)
        stride = self._network.stride
        extent = (output.part[0] / stride, output.part[1] / stride)
        if self._on_device:
            cells = maps if isinstance(maps, mx.nd.NDArray) else mx.nd.array(maps, ctx=self._ctx)
            whole = on_device.full_size(
                cells.expand_dims(0), output.size, extent=extent, interpolation=self._interpolation, stride=stride
            )
            return DeviceMap(self._times_prior(whole[0]))
        view = ClassMaps(maps, output.size, interpolation=self._interpolation, extent=extent, stride=stride)
        return HostMap(view, self._prior_of(output.size, ClassMaps), name)

    def _of_several_scales(self, index: int, image: np.ndarray | Draft) -> DeviceMap:
        maps = probabilities(
            self._network,
            [image],
            ctx=self._ctx,
            scales=self._scales,
            interpolation=self._interpolation,
            **self._options,
        )
        self._note(index, maps[0])
        return DeviceMap(self._times_prior(maps[0]))

    def _note(self, index: int, maps: Any) -> None:
        if isinstance(maps, np.ndarray):  # MXNet's maximum over classes is slow on the processor
            surest = np.maximum.reduce(maps, axis=0)
            self._sure[index] = int(np.count_nonzero(surest == 1)), surest.size
            return
        sure = maps.max(axis=0) == 1
        self._sure[index] = int(sure.sum().asscalar()), sure.size

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
