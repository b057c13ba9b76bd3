"""Tiny trees in the exact on-disk formats of the data sets, and the mistakes people make with them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (8, 12)
# Ids that any street scene has, and one ignored id.
CITYSCAPES_IDS = (0, 7, 8, 11, 21, 23, 26)
SYNTHIA_IDS = (0, 1, 2, 3, 4, 6, 8, 21)


def png(values: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint16, or (H, W) uint8 or uint16, as a PNG by hand: no library decides about the bits."""
    height, width = values.shape[:2]
    bits = 8 * values.dtype.itemsize
    colour = 2 if values.ndim == 3 else 0
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def write_rgb(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    rgb = np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, compress_level=1)  # noise: compressing more is slow and in vain
    return rgb


def write_ids(path: Path, ids, seed: int = 0, size: tuple[int, int] = SIZE, palette: bool = False) -> np.ndarray:
    raw = np.random.default_rng(seed).choice(np.array(ids, dtype=np.uint8), size=size)
    raw.flat[: len(ids)] = ids  # each of them occurs
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(raw)
    if palette:
        image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)
    return raw


def write_synthia_label(path: Path, ids=SYNTHIA_IDS, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write class ids in the first channel, instances (beyond 8 bits) in the second, zeros in the third."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(np.array(ids, dtype=np.uint16), size=size)
    classes.flat[: len(ids)] = ids
    instances = rng.integers(0, 40000, size=size, dtype=np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.dstack([classes, instances, np.zeros_like(classes)])))
    return classes


def write_gta5(root: Path, numbers=(1, 2, 3), size: tuple[int, int] = SIZE) -> Path:
    for number in numbers:
        write_rgb(root / "images" / f"{number:05}.png", number, size)
        write_ids(root / "labels" / f"{number:05}.png", CITYSCAPES_IDS, number, size, palette=True)
    return root


def write_synthia(root: Path, count: int = 3) -> Path:
    for number in range(count):
        write_rgb(root / "RGB" / f"{number:07}.png", number)
        write_synthia_label(root / "GT" / "LABELS" / f"{number:07}.png", seed=number)
    return root


def write_cityscapes(root: Path, cities=(("train", "ulm", 3), ("val", "lindau", 2))) -> Path:
    for split, city, count in cities:
        for frame in range(count):
            name = f"{city}_{frame:06}_000019"
            write_rgb(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", frame)
            if split != "test":
                write_ids(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", CITYSCAPES_IDS, frame)
    return root


def write_nthu(root: Path, cities=("Rome", "Rio", "Tokyo", "Taipei"), train: int = 4, test: int = 3) -> Path:
    for city in cities:
        for number in range(train):
            write_rgb(root / city / "Images" / "Train" / f"pano_{number:05}_0_180.jpg", number)
        for number in range(test):
            name = f"pano_{number:05}_2_0"
            write_rgb(root / city / "Images" / "Test" / f"{name}.png", number)
            write_ids(root / city / "Labels" / "Test" / f"{name}_eval.png", CITYSCAPES_IDS, number)
    return root


def truncate(path: Path, by: int = 40) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def damage(path: Path) -> None:
    """Change a byte in the middle; size and end stay."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def to_8_bits(path: Path) -> None:
    """Pass a file through Pillow, as many scripts do."""
    with Image.open(path) as image:
        rgb = np.array(image.convert("RGB"))
    Image.fromarray(rgb).save(path)
