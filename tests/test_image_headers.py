"""Files decide by their own bytes: every codec and depth is read as stored or refused, and damage is told."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from cbst_mx.data.image_files import MOST_PIXELS, read_label, read_rgb
from cbst_mx.data.image_headers import read_header
from cbst_mx.errors import DamagedError, DataError

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 16, (12, 17)).astype(np.uint8)
RGB = np.kron(RNG.integers(0, 256, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def saved(array, form, mode=None, palette=False, **options):
    stream = io.BytesIO()
    image = Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    if palette:
        image.putpalette(bytes(range(256)) * 3)
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(raw, size, bits, colour, interlaced=0, more=b""):
    head = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def deep_rgb_png():
    rows = np.arange(6 * 7 * 3, dtype=">u2").reshape(6, 7 * 3) * 30
    return png(b"".join(b"\0" + row.tobytes() for row in rows), (6, 7), 16, 2)


def tiff(values, bits, photometric, order="<", compression=1):
    """Return a grey TIFF of one strip."""
    data = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = [(256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits), (259, 3, compression)]
    tags += [(262, 3, photometric), (273, 4, 8), (277, 3, 1), (278, 4, values.shape[0]), (279, 4, len(data))]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data)) + data
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + ("H2x" if kind == 3 else "I"), value)
        for tag, kind, value in tags
    )
    return head + struct.pack(order + "H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("grey.png", saved(IDS, "PNG")),
        ("palette.png", saved(IDS, "PNG", palette=True)),
        ("grey.tif", saved(IDS, "TIFF")),
        ("lzw.tif", saved(IDS, "TIFF", compression="tiff_lzw")),
        ("deflate.tif", saved(IDS, "TIFF", compression="tiff_deflate")),
        ("palette.tif", saved(IDS, "TIFF", palette=True)),
        ("big endian.tif", tiff(IDS, 8, 1, ">")),
        ("deep.tif", tiff(IDS, 16, 1)),
        ("deep big endian.tif", tiff(IDS, 16, 1, ">")),
        ("palette.bmp", saved(IDS, "BMP", palette=True)),
        ("grey.bmp", saved(IDS, "BMP")),
        ("grey.gif", saved(IDS, "GIF")),
        ("grey.pgm", saved(IDS, "PPM")),
        ("wrong ending.jpg", saved(IDS, "PNG")),
    ],
)
def test_labels_without_loss_keep_their_values(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    np.testing.assert_array_equal(read_label(path), IDS)
    header = read_header(path)
    assert (header.height, header.width, header.lossy) == (12, 17, "")


LOSSY = {
    "jpg": ({"form": "JPEG"}, "JPEG"),
    "tif": ({"form": "TIFF", "compression": "jpeg"}, r"TIFF \(JPEG\)"),
    "jp2": ({"form": "JPEG2000", "irreversible": True, "quality_layers": [10]}, r"JPEG2000 \(JPEG 2000\)"),
    "webp": ({"form": "WEBP", "quality": 60, "mode": "RGB"}, r"WEBP \(WebP\)"),
}


@pytest.mark.parametrize("ending", LOSSY)
def test_lossy_codecs_are_no_labels_whatever_their_ending(tmp_path, ending):
    options, named = LOSSY[ending]
    codec = {"JPEG2000": "jpg_2000", "WEBP": "webp"}.get(options["form"])
    if codec and not features.check(codec):
        pytest.skip(f"this Pillow has no {codec}")
    path = tmp_path / "x.png"
    path.write_bytes(saved(np.kron(IDS, np.ones((4, 4), np.uint8)), **options))
    with pytest.raises(
        DataError, match=f"label .* must be stored without loss .PNG., got {named}, whose ids are not rel"
    ):
        read_label(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (tiff(IDS, 8, 0), "got TIFF inverted grey of 8 bits"),
        (saved(IDS.astype(np.float32), "TIFF"), "got TIFF float grey of 32 bits"),
        (saved(IDS, "TIFF", save_all=True, append_images=[Image.fromarray(IDS)]), "must hold one image, got 2 pages"),
        (b"P5 17 12 15\n" + IDS.tobytes(), "got PPM grey of 4 bits"),  # a decoder stretches these
        (b"P4 8 2\n\xaa\x55", "got PPM inverted grey of 1 bits"),
        (saved(RGB, "PNG"), "must hold one class id per pixel .* got RGB colours"),
        (saved(RGB, "WEBP", lossless=True), "must hold one class id per pixel .* got RGB colours"),
    ],
    ids=["inverted", "float", "pages", "stretched", "bitmap", "colours", "webp"],
)
def test_labels_that_a_decoder_would_change_are_refused(tmp_path, content, sentence):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_label(path)


@pytest.mark.parametrize(
    "content",
    [
        deep_rgb_png(),
        saved(RGB[..., 0].astype(np.int32) * 100, "TIFF"),
        b"P6 4 3 65535\n" + bytes(72),
        tiff(IDS, 16, 1),
    ],
    ids=["png", "int tiff", "ppm", "tiff"],
)
def test_more_than_8_bits_per_channel_are_refused_in_colour_too(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image .* must have 8 bits per channel, got .* of (16|32) bits: convert it"):
        read_rgb(path)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_images_without_loss_keep_their_values(tmp_path, form):
    path = tmp_path / "x"
    path.write_bytes(saved(RGB, form, **({"lossless": True} if form == "WEBP" else {})))
    np.testing.assert_array_equal(read_rgb(path), RGB)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P"])
def test_grey_palette_and_transparent_pngs_become_rgb(tmp_path, mode):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).convert(mode).save(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_rgb(path), np.array(image.convert("RGB")))


@pytest.mark.parametrize("options", [{}, {"subsampling": 2}, {"progressive": True}, {"mode": "L"}])
def test_jpegs_have_the_values_that_pillow_gives(tmp_path, options):
    path = tmp_path / "x.jpg"
    path.write_bytes(saved(RGB, "JPEG", **options))
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_rgb(path), np.array(image.convert("RGB")))


def test_cmyk_is_refused(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(saved(RGB, "JPEG", mode="CMYK"))
    with pytest.raises(DataError, match="must be RGB, grey or of a palette, got JPEG cmyk: convert it"):
        read_rgb(path)


def test_jpegs_with_missing_parts_are_damaged(tmp_path):
    whole = saved(np.kron(RGB, np.ones((4, 4, 1), np.uint8)), "JPEG", quality=92)
    path, half = tmp_path / "x.jpg", len(whole) // 2
    for content in (whole[:half] + whole[half + 600 :], whole[:half] + b"\xff\xd9", whole[:half]):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="cannot be read, the file is damaged or truncated"):
            read_rgb(path)
    path.write_bytes(whole + bytes(16))  # zeros behind the end are no damage
    assert read_rgb(path).shape == (384, 512, 3)


@pytest.mark.parametrize("interlaced", [0, 1])
def test_pngs_whose_data_end_early_are_damaged(tmp_path, interlaced):
    path = tmp_path / "x.png"
    stream = io.BytesIO()
    Image.fromarray(IDS).save(stream, "PNG")
    rows = b"".join(b"\0" + row.tobytes() for row in IDS)
    raw = (
        rows
        if not interlaced
        else b"".join(
            b"".join(b"\0" + row.tobytes() for row in IDS[top::down, left::right])
            for top, left, down, right in (
                (0, 0, 8, 8),
                (0, 4, 8, 8),
                (4, 0, 8, 4),
                (0, 2, 4, 4),
                (2, 0, 4, 2),
                (0, 1, 2, 2),
                (1, 0, 2, 1),
            )
        )
    )
    path.write_bytes(png(raw, IDS.shape, 8, 0, interlaced))
    np.testing.assert_array_equal(read_label(path), IDS)
    path.write_bytes(png(raw[: len(raw) // 3], IDS.shape, 8, 0, interlaced))
    for read in (read_label, read_rgb):
        with pytest.raises(DamagedError, match=f"its data hold {len(raw) // 3} of {len(raw)} bytes"):
            read(path)


def test_bytes_behind_the_end_of_a_png_are_told_and_harmless(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(saved(IDS, "PNG") + bytes(16))
    header = read_header(path)
    assert (header.whole, header.beyond) == (True, 16)
    np.testing.assert_array_equal(read_label(path), IDS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_rotation_marks_are_read_and_not_applied(tmp_path, form):
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "x"
    path.write_bytes(saved(RGB, form, exif=exif))
    assert read_header(path).turn == 6
    assert read_rgb(path).shape == RGB.shape
    path.write_bytes(saved(RGB, form))
    assert read_header(path).turn == 1


def test_no_other_decoder_is_started(tmp_path, monkeypatch):
    started = tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    for read in (read_rgb, read_label, read_header):
        with pytest.raises(DataError, match="is no image that can be read: it must be PNG, JPEG, TIFF, BMP, WebP"):
            read(path)
    assert not started.exists()


def test_pipes_folders_and_what_is_too_large_have_their_own_sentences(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for read in (read_rgb, read_label, read_header):
        with pytest.raises(DataError, match="must be a file, got a pipe or device"):
            read(pipe)
        with pytest.raises(DataError, match="must be a file, got a folder"):
            read(tmp_path)
    large = tmp_path / "large.png"
    large.write_bytes(png(b"", (20000, 9500), 8, 2))
    with pytest.raises(
        DataError, match=f"at most {MOST_PIXELS:,} pixels, got 20000 x 9500: cut it into parts"
    ) as caught:
        read_rgb(large)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_mutations_are_read_or_refused_in_one_sentence(tmp_path):
    # 1,000 files for each reader, seed fixed
    rng = np.random.default_rng(1)
    wholes = [saved(RGB, form) for form in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")]
    wholes += [saved(IDS, "PNG", palette=True), saved(IDS, "TIFF", compression="tiff_lzw"), deep_rgb_png()]
    path = tmp_path / "x"
    sentences = []
    for turn in range(1000):
        content = bytearray(wholes[turn % len(wholes)])
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(min(len(content), 200 if rng.random() < 0.7 else len(content))))
            kind = rng.integers(4)
            if kind == 0:
                content[place] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                content[place : place + 4] = bytes([0, 255][rng.integers(2)] for _ in range(4))
            elif kind == 2:
                del content[place : place + int(rng.integers(1, 30))]
            else:
                content = content[: max(1, place)]
        path.write_bytes(bytes(content))
        for read in (read_rgb, read_label):
            try:
                read(path)
            except DataError as error:
                sentences.append(str(error))
    assert len(sentences) > 500
    assert not [sentence for sentence in sentences if "\n" in sentence]


@pytest.mark.parametrize(("count", "place"), [(2**20, 8), (2, 8), (0, 8), (1000, 2**31)])
def test_a_tiff_whose_codec_is_not_in_the_file_is_damaged(tmp_path, count, place):
    # the decoder would leave the tag out, and take compressed data for the pixels
    path = tmp_path / "a.tif"
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<HHI", 259, 3, 1))
    struct.pack_into("<HHII", content, entry, 259, 3, count, place)
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"a\.tif"):
        read_header(path)


def test_a_tiff_whose_table_of_strips_is_cut_off_is_damaged(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<H", 273), struct.unpack_from("<I", content, 4)[0])
    struct.pack_into("<HHII", content, entry, 273, 4, 10**6, 8)
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="the numbers of tag 273 lie behind its end"):
        read_header(path)


def bmp(bits, palette, rows):
    """Write an uncompressed BMP of 4 x 2 indices; rows from the top, palette in RGB."""
    packed = {8: bytes, 4: lambda row: bytes(a << 4 | b for a, b in zip(row[::2], row[1::2]))}[bits]
    data = b"".join(packed(row).ljust(4, b"\0") for row in reversed(rows))
    colours = b"".join(bytes((blue, green, red, 0)) for red, green, blue in palette)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, bits, 0, len(data), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(colours) + len(data), 0, 0, 54 + len(colours)) + head + colours + data


@pytest.mark.parametrize(
    ("bits", "palette", "rows"),
    [
        (8, [(0, 0, 0), (255, 255, 255)], [[0, 1, 1, 0], [1, 0, 0, 1]]),  # read as one bit per pixel by Pillow
        (4, [(i, i, i) for i in range(16)], [[0, 5, 15, 3], [1, 2, 14, 9]]),  # refused as damaged by Pillow
        (8, [(i, i, i) for i in range(4)], [[0, 1, 2, 3], [3, 2, 1, 0]]),
    ],
)
def test_grey_palettes_of_bmp_change_no_index_and_no_colour(tmp_path, bits, palette, rows):
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(bits, palette, rows))
    np.testing.assert_array_equal(read_label(path), rows)
    np.testing.assert_array_equal(read_rgb(path), np.array(palette, dtype=np.uint8)[np.array(rows)])


@pytest.mark.parametrize("top", [18, 200, 40000])
def test_grey_values_that_pillow_would_stretch_are_no_labels(tmp_path, top):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 %d\n" % top + bytes(4 if top > 255 else 2))
    with pytest.raises(DataError, match=r"a\.pgm must "):
        read_label(path)


@pytest.mark.parametrize(("form", "shade"), [("PNG", 0), ("GIF", 0), ("TIFF", 0)])
def test_animations_and_pages_are_images_by_their_first_and_no_labels(tmp_path, form, shade):
    path = tmp_path / f"a.{form.lower()}"
    first, second = (Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (shade, 7))
    first.save(path, form, save_all=True, append_images=[second])
    assert read_header(path).pages == 2
    assert (read_rgb(path) == shade).all()
    with pytest.raises(DataError, match="must hold one image, got 2 pages or an animation"):
        read_label(path)


def test_animated_webp_is_read_by_its_first_picture(tmp_path):
    pictures = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (10, 200)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], lossless=True)
    header = read_header(tmp_path / "a.webp")
    assert (header.height, header.width, header.pages) == (6, 8, 2)
    assert (read_rgb(tmp_path / "a.webp") == 10).all()


def test_signed_bytes_are_no_labels(tmp_path):
    # -1 would be read as 255, which is ignore
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(path, tiffinfo={339: 2})
    with pytest.raises(DataError, match="got TIFF signed grey of 8 bits"):
        read_label(path)


@pytest.mark.parametrize("colours", [b"", bytes(6)])
def test_pixels_without_a_colour_in_the_palette_are_damaged(tmp_path, colours):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    palette = chunk(b"PLTE", colours) if colours else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 8, 3, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0\1\2"))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + palette + pixels + chunk(b"IEND", b""))
    with pytest.raises(DamagedError, match=r"its palette has \d colours, a pixel is 2"):
        read_rgb(path)
    np.testing.assert_array_equal(read_label(path), [[0, 1, 2]])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sides_longer_than_opencv_takes(tmp_path, mode):
    Image.new(mode, (1_100_000, 1), "white").save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png").shape == (1, 1_100_000, 3)
    if mode == "L":
        assert (read_label(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("options", [{"transparency": 1}, {"gamma": 0.4}])
def test_what_stands_beside_the_pixels_of_a_png_changes_no_id(tmp_path, options):
    ids = np.random.default_rng(0).integers(0, 3, (7, 9), dtype=np.uint8)
    for form in ("L", "P"):
        image = Image.fromarray(ids)
        if form == "P":
            image.putpalette(bytes(range(9)))
        image.save(tmp_path / "a.png", **options)
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("size", [(-4, 9), (0, 9), (9, 0), (-(2**31), 9)])
def test_sizes_of_nothing_are_damage(tmp_path, size):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(stream, "BMP")
    content = bytearray(stream.getvalue())
    content[18:26] = struct.pack("<ii", *size)
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(DamagedError, match=r"the file is damaged or truncated \(its header: it states "):
        read_header(tmp_path / "a.bmp")
