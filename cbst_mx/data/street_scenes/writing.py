"""Whole scenes, and both domains in the folders and formats of GTA5 and Cityscapes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from cbst_mx.data.street_scenes.appearance import appearance
from cbst_mx.data.street_scenes.canvas import SUPERSAMPLING
from cbst_mx.data.street_scenes.content import DOMAIN_CODES
from cbst_mx.data.street_scenes.layout import layout
from cbst_mx.data.street_scenes.looks import Shift
from cbst_mx.errors import ConfigError, RunError, check_choice
from cbst_mx.files import atomic_folder, make_folder, write_bytes
from cbst_mx.label_space import CITYSCAPES_19

__all__ = ["render_scene", "write_demo_data"]

MIN_SIZE = (32, 64)
# Layout of the written folders.
TRAIN_CITIES = ("varnholt", "grelau", "ostermark")
VAL_CITIES = ("kesselin", "tiefenroda")
# Held-out scenes start at this index, so that their content does not depend on the number of training scenes.
HELD_OUT_INDEX = 1_000_000
PNG_COMPRESSION = 1


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or size[0] < MIN_SIZE[0] or size[1] < MIN_SIZE[1]:
        got = " x ".join(str(length) for length in size)
        raise ConfigError(f"size must be (height, width) of at least {MIN_SIZE[0]} x {MIN_SIZE[1]} pixels, got {got}")


def render_scene(
    seed: int, index: int, *, domain: str, size: tuple[int, int], shift: Shift = Shift()
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene and its label map.

    Parameters
    ----------
    seed, index : int
        Number of the data set and of the scene in it, both at least 0.
    domain : {"source", "target"}
        Kind of streets.
    size : (int, int)
        (H, W) in pixels, at least 32 x 64.
    shift : Shift
        The target's appearance shift; the source and all label maps are independent of it.

    Returns
    -------
    image : ndarray of shape (H, W, 3), uint8
        RGB.
    label : ndarray of shape (H, W), uint8
        TrainIds of Cityscapes-19; every pixel has a class.

    Raises
    ------
    ConfigError
        If the domain is unknown, the size too small, or the seed or index negative.
    """
    check_choice("domain", domain, DOMAIN_CODES)
    _check_size(size)
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ConfigError(f"{name} must be at least 0, got {value}")
    canvas = layout(seed, index, domain, size)
    part_labels = np.array(canvas.instance_classes, np.uint8)[np.array(canvas.part_instances)]
    label = part_labels[canvas.parts[::SUPERSAMPLING, ::SUPERSAMPLING]]
    return appearance(canvas, seed, index, domain, shift), label


def _id_palette() -> bytes:
    """Return a PNG palette with the class colours at the Cityscapes label ids, 768 bytes."""
    train_ids = np.arange(CITYSCAPES_19.num_classes, dtype=np.uint8)[None]
    table = np.zeros((256, 3), np.uint8)
    table[CITYSCAPES_19.decode(train_ids, "cityscapes")[0]] = CITYSCAPES_19.palette
    return table.tobytes()


def _write_rgb(path: Path, image: np.ndarray) -> None:
    _, content = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])
    write_bytes(path, content.data, durable=False)


def _write_indices(path: Path, values: np.ndarray, palette: bytes | None = None) -> None:
    picture = Image.fromarray(values)
    if palette is not None:
        picture.putpalette(palette)  # turns mode L into mode P with the same values
    content = io.BytesIO()
    picture.save(content, format="PNG", compress_level=PNG_COMPRESSION)
    write_bytes(path, content.getbuffer(), durable=False)


def _write_gta5(
    folder: Path,
    count: int,
    first: int,
    scene: Callable[[int], tuple[np.ndarray, np.ndarray]],
    tick: Callable[[], None],
) -> None:
    palette = _id_palette()
    make_folder(folder / "images")
    make_folder(folder / "labels")
    for i in range(count):
        image, label = scene(first + i)
        name = f"{i + 1:05d}.png"
        _write_rgb(folder / "images" / name, image)
        _write_indices(folder / "labels" / name, CITYSCAPES_19.decode(label, "cityscapes"), palette)
        tick()


def _write_cityscapes(
    root: Path,
    split: str,
    cities: Sequence[str],
    count: int,
    first: int,
    scene: Callable[[int], tuple[np.ndarray, np.ndarray]],
    tick: Callable[[], None],
) -> None:
    for city in cities:
        make_folder(root / "leftImg8bit" / split / city)
        make_folder(root / "gtFine" / split / city)
    for i in range(count):
        image, label = scene(first + i)
        city = cities[i % len(cities)]
        stem = f"{city}_{i // len(cities):06d}_000019"
        truth = root / "gtFine" / split / city
        _write_rgb(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image)
        _write_indices(truth / f"{stem}_gtFine_labelIds.png", CITYSCAPES_19.decode(label, "cityscapes"))
        _write_indices(truth / f"{stem}_gtFine_labelTrainIds.png", label)
        tick()


def write_demo_data(
    out: Path,
    *,
    source_count: int,
    source_val_count: int,
    target_count: int,
    target_val_count: int,
    size: tuple[int, int],
    seed: int,
    shift: Shift,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write both domains to a new folder, all of it or nothing.

    The folder holds `gta5` and `gta5_val` (images/00001.png, labels/00001.png: palette PNG of Cityscapes label ids) for
    the source, and `cityscapes` (leftImg8bit and gtFine with splits train and val) for the target.

    Parameters
    ----------
    out
        Folder to make; it must not exist or be empty.
    source_count, source_val_count, target_count, target_val_count
        Number of scenes in gta5, gta5_val, cityscapes train and cityscapes val, each at least 0.
    size
        (H, W) in pixels, at least 32 x 64.
    seed
        Seed of the scenes, at least 0.
    shift
        The target's appearance shift.
    progress
        Called as progress(written scenes, all scenes) after every scene.

    Raises
    ------
    ConfigError
        If a size, count or seed is not allowed.
    RunError
        If `out` is not empty or cannot be written.
    """
    out = Path(out)
    counts = {
        "source_count": source_count,
        "source_val_count": source_val_count,
        "target_count": target_count,
        "target_val_count": target_val_count,
    }
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise ConfigError(f"{name} must be at least 0, got {value}")
    _check_size(size)
    total, done = sum(counts.values()), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    def source(index: int) -> tuple[np.ndarray, np.ndarray]:
        return render_scene(seed, index, domain="source", size=size, shift=shift)

    def target(index: int) -> tuple[np.ndarray, np.ndarray]:
        return render_scene(seed, index, domain="target", size=size, shift=shift)

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out} must be a new or empty folder, but it already holds something; choose another or remove it"
        )
    with atomic_folder(out, new=True) as partial:
        _write_gta5(partial / "gta5", source_count, 0, source, tick)
        _write_gta5(partial / "gta5_val", source_val_count, HELD_OUT_INDEX, source, tick)
        _write_cityscapes(partial / "cityscapes", "train", TRAIN_CITIES, target_count, 0, target, tick)
        _write_cityscapes(partial / "cityscapes", "val", VAL_CITIES, target_val_count, HELD_OUT_INDEX, target, tick)
