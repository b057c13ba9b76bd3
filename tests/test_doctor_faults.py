"""The doctor on own data with one fault each: one finding, of the right severity, that names the file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.doctor import examine
from tests.test_colour_profiles import profile

SIZE = (8, 12)
IDS = np.random.default_rng(0).integers(0, 3, SIZE, dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def sound(root: Path) -> Path:
    """Write three images with labels that have no fault; return their description."""
    for folder, values in (("img", RGB), ("lab", IDS)):
        (root / folder).mkdir()
        for name in "abc":
            Image.fromarray(values).save(root / folder / f"{name}.png")
    path = root / "d.yaml"
    path.write_text(
        "label_space: cityscapes-19\nids: trainId\nsplits:\n  all: {images: ['img/*.png'], labels: 'lab/{stem}.png'}\n"
    )
    return path


def again(name: str, values: np.ndarray, **options: object) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(values).save(root / name, **options)


def cut(name: str, end: int) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:end])


def flip(name: str) -> Callable[[Path], None]:
    """Change a byte of the pixels."""

    def change(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[content.index(b"IDAT") + 20] ^= 255
        (root / name).write_bytes(bytes(content))

    return change


def turned(mark: int) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = mark
    return again("img/b.png", RGB, exif=exif)


def hidden(root: Path) -> None:
    (root / "img" / "._b.png").write_bytes(b"\0\5\x16\7")


FAULTS = [
    ("error", "1 image is empty (0 bytes)", cut("img/b.png", 0)),
    ("error", "1 image is truncated", cut("img/b.png", -20)),
    ("error", "1 image is damaged", flip("img/b.png")),
    ("error", "1 image is no image that can be read", lambda root: (root / "img/b.png").write_bytes(b"<html>" * 9)),
    ("warning", "1 image is not RGB", again("img/b.png", RGB[..., 0])),
    ("warning", "1 image has a palette: labels in the images' place?", lambda root: (
        Image.fromarray(RGB).quantize(9).save(root / "img/b.png"))),
    ("note", "1 image has a colour profile other than sRGB (Display P3)",
     again("img/b.png", RGB, icc_profile=profile("Display P3", 4))),
    ("warning", "1 image is marked as turned or mirrored (EXIF)", turned(3)),
    ("note", "1 image is marked as turned (EXIF) and read as stored, as the label", turned(6)),
    ("note", "files of all: 1 left out: 1 hidden (._b.png)", hidden),
    ("error", "1 of 3 images has no label", lambda root: (root / "lab/b.png").unlink()),
    ("error", "1 label is empty (0 bytes)", cut("lab/b.png", 0)),
    ("error", "1 label is truncated", cut("lab/b.png", -20)),
    ("error", "1 label is damaged", flip("lab/b.png")),
    ("error", "1 label is no image that can be read", lambda root: (root / "lab/b.png").write_bytes(b"<svg>" * 9)),
    ("error", "1 label is JPEG, whose ids are not reliable", again("lab/b.png", IDS, format="JPEG")),
    ("error", "1 label holds colours instead of class ids", again("lab/b.png", RGB)),
    ("error", "1 label is 8-bit grey+alpha, neither grey nor a palette of ids",
     again("lab/b.png", np.dstack([IDS, IDS]))),
    ("error", "1 label has unknown ids (77)", again("lab/b.png", np.full(SIZE, 77, np.uint8))),
    ("warning", "1 label holds no evaluated class at all", again("lab/b.png", np.full(SIZE, 255, np.uint8))),
    ("error", "1 label has another resolution than the image: 4 x 6 for 8 x 12", again("lab/b.png", IDS[:4, :6])),
    ("error", "1 label has height and width of the image exchanged", again("lab/b.png", IDS.T.copy())),
    ("error", "1 label does not have the size of the image", again("lab/b.png", IDS[:7])),
    ("error", "label lab/b.png must hold one image, got 2 pages or an animation",
     again("lab/b.png", IDS, save_all=True, append_images=[Image.fromarray(IDS[::-1].copy())])),
]  # fmt: skip


@pytest.mark.parametrize(("severity", "sentence", "fault"), FAULTS, ids=[sentence for _, sentence, _ in FAULTS])
def test_one_fault_is_one_finding(tmp_path, severity, sentence, fault):
    description = sound(tmp_path)
    assert examine("folder", tmp_path, description=description, sample=None).findings == ()
    fault(tmp_path)
    (finding,) = examine("folder", tmp_path, description=description, sample=None).findings
    assert finding.severity == severity
    assert finding.what.replace(f"{tmp_path}/", "").startswith(sentence)
    assert "b.png" in finding.where + finding.what
    assert severity == "note" or finding.fix or finding.what.startswith("label ")


def test_too_large_is_no_damage(tmp_path):
    description = sound(tmp_path)
    for name in ("img/b.png", "lab/b.png"):
        content = bytearray((tmp_path / name).read_bytes())
        content[16:24] = struct.pack(">II", 20_000, 9_500)  # width and height in the header
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / name).write_bytes(bytes(content))
    findings = examine("folder", tmp_path, description=description, sample=None).findings
    assert [(finding.severity, finding.what) for finding in findings] == [
        ("error", "1 image is too large: more than 178,956,970 pixels"),
        ("error", "1 label is too large: more than 178,956,970 pixels"),
    ]
    assert {finding.fix for finding in findings} == {"cut them into parts, or make them smaller"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
@pytest.mark.parametrize(("folder", "noun"), [("img", "image"), ("lab", "label")])
def test_files_that_may_not_be_read(tmp_path, folder, noun):
    description = sound(tmp_path)
    (tmp_path / folder / "b.png").chmod(0)
    (finding,) = examine("folder", tmp_path, description=description, sample=None).findings
    assert finding.what == f"1 {noun} is not open to this user (permission denied)"


def test_many_files_of_one_reason_are_counted(tmp_path):
    description = sound(tmp_path)
    for number in range(8):
        Image.fromarray(RGB).save(tmp_path / "img" / f"{number}.png")
        animation = [Image.fromarray(IDS[::-1].copy())]
        Image.fromarray(IDS).save(tmp_path / "lab" / f"{number}.png", save_all=True, append_images=animation)
    findings = examine("folder", tmp_path, description=description, sample=None).findings
    assert len(findings) == 6
    assert findings[-1].what == "3 more files cannot be used for reasons like these"
