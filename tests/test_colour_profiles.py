"""Colour profiles are named, whatever the file's format; sRGB and damage are none."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from cbst_mx.data.colour_profiles import foreign_profile, profile_name


def profile(name: str, version: int) -> bytes:
    """Return a profile that holds nothing but its description, of version 2 or 4."""
    if version == 2:
        text = name.encode() + b"\0"
        tag = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text
    else:
        text = name.encode("utf-16-be")
        tag = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    start = 128 + 4 + 12
    return bytes(128) + struct.pack(">I4sII", 1, b"desc", start, len(tag)) + tag


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("version", [2, 4])
def test_profiles_are_named(tmp_path, ending, version):
    image = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    for name, shown in (("Adobe RGB (1998)", "Adobe RGB (1998)"), ("sRGB IEC61966-2.1", ""), ("c2", "")):
        image.save(tmp_path / f"a.{ending}", icc_profile=profile(name, version))
        assert foreign_profile(tmp_path / f"a.{ending}") == shown
    image.save(tmp_path / f"b.{ending}")
    assert foreign_profile(tmp_path / f"b.{ending}") == ""


def test_a_whole_profile_of_littlecms_is_read():
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert profile_name(made) == "sRGB built-in"


@pytest.mark.parametrize("version", [2, 4])
def test_damaged_profiles_have_no_name_or_a_short_one(version):
    whole = profile("Display P3", version)
    for length in range(len(whole)):
        assert len(profile_name(whole[:length])) <= 60
    rng = np.random.default_rng(0)
    for _ in range(500):
        broken = bytearray(whole)
        for place in rng.integers(128, len(whole), 3):
            broken[place] = rng.integers(256)
        assert profile_name(bytes(broken))
    assert profile_name(bytes(200)) == "without a name"


def test_what_is_no_image_has_none(tmp_path):
    assert foreign_profile(tmp_path / "none.png") == ""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    assert foreign_profile(tmp_path / "a.png") == ""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "b.bmp")
    assert foreign_profile(tmp_path / "b.bmp") == ""
