"""The input of the labelling job: class maps in files, opened without reading their numbers.

C classes, H x W pixels; a stored map is (C, h, w), at full size or at a network's stride.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from cbst_mx.data.folder import read_label_space
from cbst_mx.data.image_files import MOST_PIXELS
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.files import file_digest
from cbst_mx.label_space import LabelSpace, find, numbered
from cbst_mx.labelling.map_files import Version, array_bytes, file_version, find_maps, read_header, read_map
from cbst_mx.selftrain import prior_files
from cbst_mx.selftrain.class_maps import ClassMaps, size_at_stride
from cbst_mx.selftrain.interpolation import INTERPOLATIONS
from cbst_mx.selftrain.map_checks import Sums, check_origin, check_sums
from cbst_mx.selftrain.spatial_prior import check_not_zero
from cbst_mx.selftrain.views import HostMap

__all__ = ["MapFolder"]


@dataclasses.dataclass(frozen=True)
class MapFolder:
    """The class maps of a folder, one image per file, and how they become full-size maps.

    Attributes
    ----------
    label_space : LabelSpace
        The C classes.
    names : tuple of str
        The files' paths below the folder, without suffix and with "/" between folders; sorted.
    paths : tuple of Path
    shapes : tuple of (int, int, int)
        (C, h, w) as stored.
    item_bytes : int
        Bytes of memory per value while it is read, the largest of all files.
    sizes : tuple of (int, int)
        (H, W) of the images.
    versions : tuple of (int, int)
        Bytes and time of change (in nanoseconds) of the files.
    all_names : tuple of str
        The names in the folder, of which `names` may be a shard.
    stride : int
        Pixels per cell along each side.
    size : (int, int), optional
        (H, W) of every image, where that was given.
    interpolation : {"bilinear", "bicubic", "pillow"}
    origin : {"plain", "bicubic", "maximum", "prior", "scores"}
        What the classes of a pixel sum to, see ``map_checks.ORIGINS``.
    prior : Path, optional
        Spatial prior.
    prior_sha256 : str, optional
        SHA-256 of the prior's file.
    key : str, optional
        Name of the arrays in ``.npz`` and ``.pt`` files, where that was given.
    left_out : tuple of str
        Files of other kinds in the folder, and output folders of labelling jobs.
    """

    label_space: LabelSpace
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, int, int], ...]
    sizes: tuple[tuple[int, int], ...]
    item_bytes: int
    versions: tuple[Version, ...]
    all_names: tuple[str, ...]
    stride: int = 1
    size: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    origin: str = "plain"
    prior: Path | None = None
    prior_sha256: str | None = None
    key: str | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        classes: str | None = None,
        stride: int = 1,
        size: tuple[int, int] | Mapping[str, tuple[int, int]] | None = None,
        interpolation: str = "bilinear",
        origin: str = "plain",
        prior: Path | None = None,
        shard: tuple[int, int] = (1, 1),
        key: str | None = None,
    ) -> MapFolder:
        """Look at every file of `folder` and its sub-folders without reading its numbers (but for ``.pt`` files).

        Parameters
        ----------
        folder : Path
            Its files hold float maps (C, h, w) as :mod:`.map_files` says; other files are left alone.
        classes : str, optional
            Label space by name, number of classes or YAML file, as for :func:`cbst_mx.label_space.find`.
        stride : int
            Pixels per cell along each side; 1 for maps at full size.
        size : (int, int) or mapping of str to (int, int), optional
            (H, W) of all images, or by name, where they are not `stride` times the map.
        interpolation, origin, prior
            As the attributes.
        shard : (int, int)
            (i, n): the i-th of n parts of the sorted files, every n-th file from the i-th on; (1, 1) is all.
        key : str, optional
            As the attribute; else files must hold one array, or one called "probability".

        Raises
        ------
        ConfigError
            If an argument is not allowed.
        DataError
            If the folder is missing or holds no map, or a file cannot be used.
        """
        if stride < 1:
            raise ConfigError(f"upsample must be at least 1, got {stride}")
        check_choice("upsampling", interpolation, INTERPOLATIONS)
        check_origin(origin)
        part, parts = shard
        if not 1 <= part <= parts:
            raise ConfigError(f"shard must be I/N with I from 1 to N, got {part}/{parts}")
        found, left_out = find_maps(folder)
        if parts > len(found):
            raise ConfigError(f"shard must be one of at most {len(found)} (one for each map), got {part}/{parts}")
        names = tuple(found)[part - 1 :: parts]
        paths = [found[name] for name in names]
        versions = tuple(file_version(path) for path in paths)
        shapes: list[tuple[int, int, int]] = []
        sizes: list[tuple[int, int]] = []
        item_bytes = 0
        for name, path in zip(names, paths):
            shape, bytes_each = read_header(path, key)
            if shapes and shape[0] != shapes[0][0]:
                raise DataError(f"{path} must have the {shapes[0][0]} classes of {paths[0].name}, got {shape[0]}")
            shapes.append(shape)
            own = size if size is None or isinstance(size, tuple) else size[name]
            sizes.append(_image_size(path, shape, stride, own))
            item_bytes = max(item_bytes, bytes_each)
        opened = cls(
            label_space=find(classes, shapes[0][0], origin=str(paths[0]), read=read_label_space),
            names=names,
            paths=tuple(paths),
            shapes=tuple(shapes),
            sizes=tuple(sizes),
            item_bytes=item_bytes,
            versions=versions,
            all_names=tuple(found),
            stride=stride,
            size=size if isinstance(size, tuple) else None,
            interpolation=interpolation,
            origin=origin,
            prior=prior,
            prior_sha256=None if prior is None else _sha256(prior),
            key=key,
            left_out=tuple(left_out),
        )
        opened.prior_maps(0)  # refuse what is wrong with it now
        return opened

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.label_space.num_classes

    def subset(self, indices: Sequence[int]) -> MapFolder:
        """Return the same for some of the images."""
        chosen: dict[str, Any] = {
            field: tuple(getattr(self, field)[index] for index in indices)
            for field in ("names", "paths", "shapes", "sizes", "versions")
        }
        chosen["all_names"] = chosen["left_out"] = ()  # sent to a process with every block
        return dataclasses.replace(self, **chosen)

    def absolute(self) -> MapFolder:
        """Return the same by absolute paths, for a process that works in another folder."""
        prior = None if self.prior is None else self.prior.absolute()
        return dataclasses.replace(self, paths=tuple(path.absolute() for path in self.paths), prior=prior)

    def maps(self, index: int) -> ClassMaps:
        """Return the probabilities of one image, seen at full size.

        Raises
        ------
        DataError
            If the file cannot be read, or has changed since the folder was opened.
        """
        if file_version(self.paths[index]) != self.versions[index]:
            raise DataError(f"{self.paths[index]} has changed since this run began: give the same command again")
        stored = read_map(self.paths[index], self.key, mapped=self.shapes[index][1:] == self.sizes[index])
        if stored.shape != self.shapes[index]:
            raise DataError(f"{self.paths[index]} has changed: its shape was {self.shapes[index]}, is {stored.shape}")
        return ClassMaps.at_stride(stored, self.sizes[index], self.stride, interpolation=self.interpolation)

    def prior_maps(self, index: int) -> ClassMaps | None:
        """Return the spatial prior at the size of one image, None where there is none."""
        if self.prior is None or self.prior_sha256 is None:
            return None
        # the names of unnamed classes are ours: there is nothing to compare
        names = None if self.label_space == numbered(self.num_classes) else self.label_space.names
        return _sized_prior(self.prior, self.prior_sha256, self.num_classes, names, self.sizes[index])

    def view(self, index: int) -> HostMap:
        """Return one image as the pass sees it.

        Raises
        ------
        DataError
            If the file cannot be used, naming it; so do the errors of the view.
        """
        path = str(self.paths[index])
        try:
            maps = self.maps(index)
            check_sums(maps.stored, self.origin, release=maps.release)
            bounded = self.origin not in ("prior", "scores")
            return HostMap(maps, self.prior_maps(index), path, bounded=bounded)
        except DataError as error:
            raise error if path in str(error) else DataError(f"{path}: {error}") from error

    def sums(self) -> Sums | None:
        """Return what the classes of the first map sum to."""
        return check_sums(self.maps(0).stored, self.origin)

    def settings(self) -> dict[str, Any]:
        """Return what the counts depend on besides the files, as JSON values."""
        origin = {} if self.origin == "plain" else {"origin": self.origin}
        key = {} if self.key is None else {"key": self.key}
        return {
            **origin,
            **key,
            "classes": self.num_classes,
            "upsample": self.stride,
            "size": None if self.size is None else list(self.size),
            "upsampling": self.interpolation,
            "spatial prior (SHA-256)": self.prior_sha256,
        }

    def prior_bytes(self) -> int:
        """Return how much memory the spatial prior takes while it is read, 0 where there is none."""
        return 0 if self.prior is None else array_bytes(self.prior, "prior")


def _image_size(path: Path, shape: tuple[int, int, int], stride: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the size (H, W) of an image; refuse one whose label could not be read back."""
    height, width = size_at_stride(shape, stride, size, str(path))
    if height * width > MOST_PIXELS:
        raise DataError(
            f"the label of {path} must have at most {MOST_PIXELS:,} pixels, got {height} x {width}: give a smaller "
            "upsample"
        )
    return height, width


def _sha256(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"spatial prior {path} cannot be read: {error.strerror or error}") from error


# In the key the hash stands for what the file holds; neighbouring images share the prior, resized tile by tile.
@functools.lru_cache(maxsize=1)
def _prior(path: Path, sha256: str, num_classes: int, names: tuple[str, ...] | None) -> np.ndarray:
    prior = prior_files.load(path, num_classes, names)
    check_not_zero(prior, str(path))
    return prior


@functools.lru_cache(maxsize=4)
def _sized_prior(
    path: Path, sha256: str, num_classes: int, names: tuple[str, ...] | None, size: tuple[int, int]
) -> ClassMaps:
    return ClassMaps(_prior(path, sha256, num_classes, names), size)
