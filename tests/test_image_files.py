"""Image files: what is read, what is refused, and that nothing half-written stays."""

from __future__ import annotations

import errno
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.image_files import (
    Header,
    read_draft,
    read_header,
    read_label,
    read_rgb,
    read_rgb16,
    write_label_png,
    write_palette_png,
    write_rgb_png,
)
from cbst_mx.errors import DataError, RunError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE
from tests.dataset_fixtures import damage, png, truncate

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, size=(9, 14, 3), dtype=np.uint8)
GREY = RNG.integers(0, 35, size=(9, 14), dtype=np.uint8)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """Write a grey PNG of 1, 2 or 4 bits per pixel by hand: Pillow reads such files but does not write them."""
    height, width = values.shape
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1  # (H, W) -> (H, W, bits), most significant first
    rows = np.packbits(planes.reshape(height, width * bits).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_rgb_is_read_as_stored(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RGB).save(path)
    image = read_rgb(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, RGB)


def test_grey_transparent_and_palette_images_become_rgb(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png"), np.repeat(GREY[..., None], 3, axis=2))

    alpha = np.dstack([RGB, GREY])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "alpha.png"), RGB)

    train_ids = GREY % 19
    write_label_png(tmp_path / "palette.png", train_ids, CITYSCAPES_19)
    np.testing.assert_array_equal(read_rgb(tmp_path / "palette.png"), CITYSCAPES_19.colorize(train_ids))


def test_jpeg_images_are_read(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (16, 8), (200, 100, 50)).save(path, quality=95)
    # A flat colour survives JPEG up to rounding between colour systems.
    assert np.abs(read_rgb(path).astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("wanted", "part"), [((101, 61), 1), ((51, 31), 2), ((50, 32), 1), ((26, 16), 4), ((13, 8), 8), ((1, 1), 8)]
)
def test_drafts_of_jpegs_are_as_large_as_wanted_or_larger(tmp_path, mode, progressive, wanted, part):
    picture = Image.effect_noise((61, 101), 40).resize((61, 101)).convert(mode)
    picture.save(tmp_path / "x.jpg", quality=95, progressive=progressive)
    whole, sizes = read_rgb(tmp_path / "x.jpg"), []
    draft = read_draft(tmp_path / "x.jpg", lambda *size: sizes.append(size) or wanted)
    assert sizes == [(101, 61)]
    if part == 1:
        np.testing.assert_array_equal(draft, whole)
        return
    assert (draft.shape, draft.part) == (whole.shape, part)
    assert draft.pixels.shape == (-(-101 // part), -(-61 // part), 3)
    assert draft.pixels.dtype == np.uint8
    assert abs(draft.pixels.mean() - whole.mean()) < 3  # grey levels, of noise of 40


def test_drafts_of_other_files_are_whole_images(tmp_path):
    image = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    write_rgb_png(tmp_path / "x.png", image)
    np.testing.assert_array_equal(read_draft(tmp_path / "x.png", lambda *_: (4, 5)), image)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_drafts_of_damaged_jpegs_are_refused_as_the_images_are(tmp_path, kept, progressive):
    path = tmp_path / "x.jpg"
    Image.fromarray(RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(path, progressive=progressive)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError) as whole:
        read_rgb(path)
    with pytest.raises(DataError) as draft:
        read_draft(path, lambda *_: (8, 10))
    assert str(draft.value) == str(whole.value)


def test_images_of_16_bits_are_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(GREY.astype(np.uint16)).save(path)
    with pytest.raises(DataError, match=r"image .*x\.png must have 8 bits per channel, got PNG grey of 16 bits"):
        read_rgb(path)


def test_label_of_a_palette_png_is_its_index(tmp_path):
    path = tmp_path / "x.png"
    image = Image.fromarray(GREY)
    image.putpalette(RNG.integers(0, 256, size=768, dtype=np.uint8).tobytes())
    image.save(path)
    label = read_label(path)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, GREY)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_label_of_a_palette_png_of_fewer_bits_is_its_index(tmp_path, bits):
    path = tmp_path / "x.png"
    values = (GREY % 2**bits).astype(np.uint8)
    image = Image.fromarray(values)
    image.putpalette(bytes(range(256)) * 3)
    image.save(path, bits=bits)
    np.testing.assert_array_equal(read_label(path), values)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_label_of_a_grey_png_of_fewer_bits_is_its_value(tmp_path, bits):
    path = tmp_path / "x.png"
    values = (GREY % 2**bits).astype(np.uint8)
    path.write_bytes(grey_png(values, bits))
    np.testing.assert_array_equal(read_label(path), values)


def test_label_of_a_grey_png_is_its_value(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(GREY).save(path)
    np.testing.assert_array_equal(read_label(path), GREY)

    deep = GREY.astype(np.uint16) * 1000
    Image.fromarray(deep).save(path)
    label = read_label(path)
    assert np.issubdtype(label.dtype, np.integer)
    np.testing.assert_array_equal(label, deep)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_labels_are_refused(tmp_path, mode):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).convert(mode).save(path)
    with pytest.raises(DataError) as error:
        read_label(path)
    assert str(error.value) == (
        f"label {path} must hold one class id per pixel (palette or grey PNG), got {mode} colours: "
        "convert colour labels to ids first"
    )


def test_labels_stored_with_loss_are_refused(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(GREY).save(path)
    with pytest.raises(DataError, match=r"label .*x\.jpg must be stored without loss \(PNG\), got JPEG"):
        read_label(path)


def test_labels_of_other_modes_are_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.dstack([GREY, GREY])).save(path)
    with pytest.raises(DataError, match=r"label .*x\.png must be a palette or grey PNG, got PNG grey.alpha of 8 bits"):
        read_label(path)


@pytest.mark.parametrize(("read", "what"), [(read_rgb, "image"), (read_label, "label")])
def test_missing_foreign_and_unreadable_files_are_named(tmp_path, read, what):
    path = tmp_path / "x.png"
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value) == f"{what} {path} does not exist"
    path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value) == f"{what} {path} is empty (0 bytes)"
    path.write_text("no image at all")
    with pytest.raises(DataError, match="is no image that can be read"):
        read(path)
    with pytest.raises(DataError, match=f"{what} .* must be a file, got a folder"):
        read(tmp_path)


@pytest.mark.parametrize(("read", "what"), [(read_rgb, "image"), (read_label, "label")])
def test_truncated_png_is_never_read_in_part(tmp_path, monkeypatch, read, what):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as gluoncv does
    whole, path = tmp_path / "whole.png", tmp_path / "x.png"
    Image.fromarray(RGB if what == "image" else GREY).save(whole)
    content, pixels = whole.read_bytes(), read(whole)
    refusals = []
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        try:
            found = read(path)
        except DataError as error:
            refusals.append(str(error))
        else:
            # Without its last chunks, which hold no pixels, a file may pass; its pixels must be complete.
            np.testing.assert_array_equal(found, pixels)
    assert all(refusal.startswith(f"{what} {path} ") for refusal in refusals)
    assert len(refusals) >= len(content) - 25

    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{what} .* cannot be read, the file is damaged or truncated"):
        read(path)


def test_damaged_png_is_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or truncated"):
        read_rgb(path)


# --- 16 bits, headers ---------------------------------------------------------------------------------------------


def test_rgb_of_16_bits_is_read_in_the_files_order(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, size=(9, 14, 3), dtype=np.uint16)
    (tmp_path / "x.png").write_bytes(png(values))
    image = read_rgb16(tmp_path / "x.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, values)


def test_16_bits_with_transparency(tmp_path):
    import cv2

    values = np.random.default_rng(1).integers(0, 65536, size=(9, 14, 4), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "x.png"), values[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(read_rgb16(tmp_path / "x.png"), values[..., :3])


def test_other_kinds_are_no_rgb_of_16_bits(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "8.png")
    with pytest.raises(DataError, match=r"8\.png must be an RGB PNG of 16 bits per channel, got PNG rgb of 8 bits"):
        read_rgb16(tmp_path / "8.png")
    (tmp_path / "grey.png").write_bytes(png(GREY.astype(np.uint16)))
    with pytest.raises(DataError, match="got PNG grey of 16 bits"):
        read_rgb16(tmp_path / "grey.png")


@pytest.mark.parametrize("change", [truncate, damage, lambda path: truncate(path, 1)])
def test_changed_files_of_16_bits_are_refused(tmp_path, change):
    path = tmp_path / "x.png"
    path.write_bytes(png(np.random.default_rng(1).integers(0, 65536, size=(9, 14, 3), dtype=np.uint16)))
    read_rgb16(path)
    change(path)
    with pytest.raises(DataError, match="damaged or truncated"):
        read_rgb16(path)


def test_headers(tmp_path):
    def header(name):
        return read_header(tmp_path / name)

    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    assert header("rgb.png") == Header("PNG", 9, 14, 8, "rgb", True)
    Image.fromarray(RGB).save(tmp_path / "rgb.jpg")
    assert header("rgb.jpg") == Header("JPEG", 9, 14, 8, "rgb", True, "JPEG")
    (tmp_path / "grey16.png").write_bytes(png(GREY.astype(np.uint16)))
    assert header("grey16.png") == Header("PNG", 9, 14, 16, "grey", True)
    (tmp_path / "grey2.png").write_bytes(grey_png(GREY % 4, 2))
    assert header("grey2.png") == Header("PNG", 9, 14, 2, "grey", True)
    write_label_png(tmp_path / "palette.png", GREY % 19, CITYSCAPES_19)
    assert header("palette.png") == Header("PNG", 9, 14, 8, "palette", True)
    truncate(tmp_path / "palette.png", 1)
    assert not header("palette.png").whole


def test_files_without_a_header(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png is empty .0 bytes."):
        read_header(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("moved to another server")
    with pytest.raises(DataError, match=r"text\.png is no image that can be read"):
        read_header(tmp_path / "text.png")
    with pytest.raises(DataError, match="does not exist"):
        read_header(tmp_path / "none.png")


def test_palette_and_indices_are_kept(tmp_path):
    palette = bytes(range(30))
    write_palette_png(tmp_path / "x.png", GREY, palette)
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "P"
        assert bytes(image.getpalette()[:30]) == palette
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), GREY)
    with pytest.raises(DataError, match=r"indices must be uint8 of shape \(H, W\), got int64"):
        write_palette_png(tmp_path / "y.png", GREY.astype(np.int64), palette)


def test_written_label_is_an_8_bit_palette_png(tmp_path):
    path = tmp_path / "x.png"
    train_ids = np.array([[0, 5, 18], [IGNORE, 13, 2]], dtype=np.uint8)
    write_label_png(path, train_ids, CITYSCAPES_19)
    np.testing.assert_array_equal(read_label(path), train_ids)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), CITYSCAPES_19.colorize(train_ids))
    assert path.read_bytes()[24] == 8  # bits per pixel, even where few classes occur
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_written_image_is_read_back(tmp_path):
    path = tmp_path / "x.png"
    write_rgb_png(path, RGB[:, ::-1])  # not contiguous
    np.testing.assert_array_equal(read_rgb(path), RGB[:, ::-1])
    write_rgb_png(path, RGB)
    np.testing.assert_array_equal(read_rgb(path), RGB)


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    write_rgb_png(tmp_path / "x.png", RGB)
    assert (tmp_path / "x.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_wrong_arrays_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="must be 0-18 or 255"):
        write_label_png(tmp_path / "x.png", np.full((2, 2), 19, dtype=np.uint8), CITYSCAPES_19)
    with pytest.raises(DataError, match=r"rgb must be uint8 of shape \(H, W, 3\), got float64 of shape \(2, 2, 3\)"):
        write_rgb_png(tmp_path / "x.png", np.zeros((2, 2, 3)))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    write_rgb_png(path, RGB)
    before = path.read_bytes()

    def disk_full(path, content):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cbst_mx.files._put", disk_full)
    for write in (
        lambda: write_rgb_png(path, RGB // 2),
        lambda: write_label_png(path, GREY % 19, CITYSCAPES_19),
    ):
        with pytest.raises(RunError) as error:
            write()
        assert str(error.value) == f"cannot write {path}: no space left on the disk"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_rgb_png(tmp_path / "x.png", RGB)
    assert list(tmp_path.iterdir()) == []


def test_writing_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "x.png"
    with pytest.raises(RunError, match=f"cannot write {path}: "):
        write_rgb_png(path, RGB)
