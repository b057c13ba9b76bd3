"""The decoders of PNGs agree: the same pixels, and the same files refused, with libspng and without."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data import png_pixels
from cbst_mx.data.image_files import read_label, read_rgb, read_rows, write_palette_png
from cbst_mx.errors import DataError

RNG = np.random.default_rng(0)
ADAM7, CHANNELS = 1, {0: 1, 2: 3, 3: 1, 6: 4}
HAS_SPNG = png_pixels._spng is not None
needs_spng = pytest.mark.skipif(not HAS_SPNG, reason="imagecodecs (extra speed) is not installed")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def rows(values: np.ndarray, filters: np.ndarray) -> bytes:
    """Return the filtered rows of pixels (H, W, channels), filter types 0 (none), 1 (left) and 2 (above)."""
    flat = values.reshape(len(values), -1)
    left = np.pad(flat, ((0, 0), (values.shape[2], 0)))[:, : flat.shape[1]]
    above = np.vstack([np.zeros_like(flat[:1]), flat[:-1]])
    return b"".join(
        bytes([kind]) + (row - (0, one, other)[kind]).astype(np.uint8).tobytes()
        for row, one, other, kind in zip(flat, left, above, filters)
    )


def crafted(rng: np.random.Generator, colour: int) -> bytes:
    """Return a PNG of a few pixels, of which most are wrong in one way that checksums of chunks do not show."""
    height, width = (int(n) for n in rng.integers(1, 9, size=2))
    values = rng.integers(0, 256, (height, width, CHANNELS[colour]), dtype=np.uint8)
    data = rows(values, rng.integers(0, 3, height))
    fault = int(rng.integers(0, 13))
    if fault == 1:
        data = bytes([int(rng.integers(3, 256))]) + data[1:]  # another filter, or none that there is
    elif fault == 2:
        data = data[: int(rng.integers(0, len(data)))]
    elif fault == 3:
        data += bytes(int(rng.integers(1, 60)))
    packed = bytearray(zlib.compress(data, int(rng.integers(0, 10))))
    if fault == 4:
        packed[-1 - int(rng.integers(0, 4))] ^= 1 << int(rng.integers(0, 8))  # the checksum of the pixels
    elif fault == 5:
        packed = packed[: int(rng.integers(0, len(packed)))]
    elif fault == 6:
        packed[int(rng.integers(0, len(packed)))] ^= 1 << int(rng.integers(0, 8))
    elif fault == 7:
        packed += rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
    if fault == 8:
        width = max(1, width + int(rng.integers(-1, 2)))
    methods = [0, 0, ADAM7 if fault == 9 else 0]
    if fault in (10, 11):  # a way to compress, or to filter, that does not exist
        methods[fault - 10] = 1
    header = struct.pack(">IIBBBBB", width, height, 8, colour, *methods)
    cut = int(rng.integers(0, len(packed) + 1))
    parts = [chunk(b"IHDR", header), chunk(b"gAMA", struct.pack(">I", 45455))]
    if fault == 12:
        parts.append(chunk(b"IHDR", struct.pack(">IIBBBBB", width, height + 1, 8, colour, 0, 0, 0)))
    if colour == 3:
        parts.append(chunk(b"PLTE", bytes(range(256)) * 3))
    parts += [chunk(b"IDAT", bytes(packed[:cut])), chunk(b"IDAT", bytes(packed[cut:])), chunk(b"IEND", b"")]
    content = bytearray(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    change = int(rng.integers(0, 6))
    if change == 0:
        content = content[: int(rng.integers(1, len(content)))]
    elif change == 1:
        content[int(rng.integers(8, len(content)))] ^= 1 << int(rng.integers(0, 8))
    elif change == 2:
        content = content[: -int(rng.integers(1, 20))]
    return bytes(content)


def outcome(read, path):
    """Return the pixels, or the sentence that refuses the file."""
    try:
        return read(path)
    except DataError as error:
        return re.sub(" at 0x[0-9a-f]+", "", str(error))  # of an object that Pillow names


@needs_spng
@pytest.mark.parametrize(("read", "colour"), [(read_rgb, 2), (read_rgb, 6), (read_label, 0), (read_label, 3)])
def test_with_libspng_the_same_is_read_and_the_same_refused(tmp_path, monkeypatch, read, colour):
    path, rng, found = tmp_path / "x.png", np.random.default_rng(colour), []
    for _ in range(200):
        path.write_bytes(crafted(rng, colour))
        ours = outcome(read, path)
        with monkeypatch.context() as patch:
            patch.setattr(png_pixels, "_inflate", None)
            packed = outcome(read, path)
            patch.setattr(png_pixels, "_spng", None)
            theirs = outcome(read, path)
        assert np.array_equal(ours, packed)
        if read is read_rgb:
            assert np.array_equal(ours, outcome(lambda path: np.asarray(read_rows(path)), path))
        assert type(ours) is type(theirs), (ours, theirs, path.read_bytes())
        if isinstance(ours, str):
            assert ours == theirs
        else:
            assert ours.dtype == theirs.dtype
            assert ours.flags.writeable
            np.testing.assert_array_equal(ours, theirs)
        found.append(isinstance(ours, str))
    assert 20 < sum(found) < 180  # both happen


@pytest.mark.parametrize("spng", [True, False])
@pytest.mark.parametrize(("mode", "read"), [("RGB", read_rgb), ("RGBA", read_rgb), ("L", read_label)])
def test_decoders_give_what_pillow_gives(tmp_path, monkeypatch, mode, read, spng):
    if not spng:
        monkeypatch.setattr(png_pixels, "_spng", None)
    picture = Image.fromarray(RNG.integers(0, 256, (37, 61, 4), dtype=np.uint8)).convert(mode)
    picture.save(tmp_path / "x.png")
    expected = np.array(picture.convert("RGB")) if read is read_rgb else np.array(picture)
    pixels = read(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("error", [RuntimeError, ValueError, MemoryError, ImportError])
def test_what_libspng_does_not_decode_opencv_does(tmp_path, monkeypatch, error):
    def refuses(content):
        raise error("no")

    monkeypatch.setattr(png_pixels, "_spng", refuses)
    image = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "x.png"), image)


@needs_spng
@pytest.mark.parametrize("interlaced", [0, ADAM7])
@pytest.mark.parametrize("size", [(1, 1), (15, 1456), (30, 1456), (31, 1456), (300, 999)])  # 15 rows are 65535 bytes
def test_what_libdeflate_unpacks_libspng_reads_as_before(tmp_path, monkeypatch, size, interlaced):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8) // 64
    data = zlib.compress(rows(image, RNG.integers(0, 3, size[0])))
    if interlaced:  # no data of that order are made here, it is enough that they are left to the decoders
        data = zlib.compress(bytes(image.size + 8 * size[0]))
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, 2, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *(chunk(b"IDAT", data[at : at + 7000]) for at in range(0, len(data), 7000))]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")]))
    given, spng = [], png_pixels._spng
    monkeypatch.setattr(png_pixels, "_spng", lambda content: given.append(content) or spng(content))
    pixels = read_rgb(tmp_path / "x.png")
    if not interlaced:
        np.testing.assert_array_equal(pixels, image)
    monkeypatch.setattr(png_pixels, "_inflate", None)
    np.testing.assert_array_equal(read_rgb(tmp_path / "x.png"), pixels)
    assert isinstance(given[0], bytes) == bool(interlaced)
    assert given[1] == (tmp_path / "x.png").read_bytes()


@needs_spng
def test_what_is_too_much_to_unpack_libspng_unpacks(tmp_path, monkeypatch):
    image = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    monkeypatch.setattr(png_pixels, "_MOST_UNPACKED", 5 * (1 + 7 * 3) - 1)
    monkeypatch.setattr(png_pixels, "_inflate", None.__class__)  # not called
    np.testing.assert_array_equal(read_rgb(tmp_path / "x.png"), image)


@needs_spng
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_windows_of_rows_are_those_of_the_image(tmp_path, monkeypatch, mode):
    picture = Image.fromarray(RNG.integers(0, 256, (150, 301, 4), dtype=np.uint8) // 32).convert(mode)
    picture.save(tmp_path / "x.png")
    image, found = read_rgb(tmp_path / "x.png"), read_rows(tmp_path / "x.png")
    assert isinstance(found, png_pixels.Rows)
    assert (found.shape, found.size, found.nbytes) == (image.shape, image.size, image.nbytes)
    heights, spng = [], png_pixels._spng
    monkeypatch.setattr(png_pixels, "_spng", lambda content: heights.append(spng(content)) or heights[-1])
    for bottom in (0, 1, 80, 150):
        np.testing.assert_array_equal(
            found[max(0, bottom - 7) : bottom, 20:301], image[max(0, bottom - 7) : bottom, 20:]
        )
    assert [len(pixels) for pixels in heights] == [1, 1, 80, 150]
    np.testing.assert_array_equal(np.asarray(found), image)
    monkeypatch.setattr(png_pixels, "_spng", lambda content: int("no memory"))
    np.testing.assert_array_equal(found[3:9, 5:11], image[3:9, 5:11])


@needs_spng
def test_a_filter_that_there_is_not_is_seen_below_a_window(tmp_path):
    image = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = rows(image, np.zeros(9, int))
    data = data[: -len(data) // 9] + b"\7" + data[1 - len(data) // 9 :]  # of the last row
    header = struct.pack(">IIBBBBB", 7, 9, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    said = outcome(read_rgb, tmp_path / "x.png")
    assert isinstance(said, str)
    assert outcome(read_rows, tmp_path / "x.png") == said


def test_pixels_of_another_shape_are_not_taken(monkeypatch):
    monkeypatch.setattr(png_pixels, "_spng", lambda content: np.zeros((2, 2), np.uint8))
    assert png_pixels.decoded(b"", (3, 2)) is None
    assert png_pixels.decoded(b"", (2, 2, 3)) is None
    assert png_pixels.decoded(b"", (2, 2)).shape == (2, 2)


def test_without_imagecodecs_everything_is_read():
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"  # an import of it is then an ImportError
        "from cbst_mx.data import image_files, png_pixels; print(png_pixels._spng)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("None\n", "")


def test_written_labels_are_run_lengths(tmp_path):
    # A row that repeats the one above: run lengths cannot say so, which is why writing is fast.
    indices = np.tile(RNG.integers(0, 19, (1, 256), dtype=np.uint8), (64, 1))
    write_palette_png(tmp_path / "x.png", indices, bytes(768))
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), indices)
    searched = io.BytesIO()
    Image.fromarray(indices).save(searched, "PNG", compress_level=6)
    assert (tmp_path / "x.png").stat().st_size > 2 * len(searched.getvalue())
