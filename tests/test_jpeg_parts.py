"""JPEGs with missing scans, and JPEG within TIFF with missing parts."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.image_files import read_rgb
from cbst_mx.data.jpeg_parts import check_scans
from cbst_mx.errors import DamagedError

PICTURE = np.kron(np.random.default_rng(0).integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def jpeg(**options):
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"progressive": True, "subsampling": 2},
        {"restart_marker_rows": 1},
        {"progressive": True, "restart_marker_rows": 1},
        {"keep_rgb": True},
    ],
)
def test_whole_files_pass(tmp_path, options):
    content = jpeg(**options)
    check_scans(content)
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_rgb(path), np.array(Image.open(path)))


@pytest.mark.parametrize("scan", [1, 2, -1])
def test_progressive_files_without_their_last_scans_are_damaged(tmp_path, scan):
    content = jpeg(progressive=True)
    starts = [place for place in range(len(content) - 1) if content[place : place + 2] == b"\xff\xda"]
    (tmp_path / "a.jpg").write_bytes(content[: starts[scan]] + b"\xff\xd9")
    with pytest.raises(DamagedError, match=r"a\.jpg .* damaged .*scans are missing"):
        read_rgb(tmp_path / "a.jpg")


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 100])
def test_what_has_no_scan_description_is_left_to_the_decoder(cut):
    assert check_scans(jpeg(progressive=True)[:cut]) is None


def test_jpeg_in_tiff_with_a_gap_is_damaged(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(PICTURE).save(path, compression="jpeg", quality=90)
    read_rgb(path)
    content = bytearray(path.read_bytes())
    with Image.open(path) as image:
        place, length = image.tag_v2[273][0], image.tag_v2[279][0]
    half = place + length // 2
    content[half : half + 2] = b"\xff\xd9"  # an end in the middle
    path.write_bytes(bytes(content))
    assert np.abs(np.array(Image.open(path)).astype(int) - PICTURE).max() > 100  # which libtiff does not tell
    with pytest.raises(DamagedError, match=r"a\.tif .*premature end"):
        read_rgb(path)
