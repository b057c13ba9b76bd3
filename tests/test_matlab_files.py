"""MATLAB files: what scipy writes is read; damaged and hostile files are refused without memory being asked for."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from scipy import io

from cbst_mx.selftrain.matlab_files import NUMBERS, read_variable

ARRAY = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_arrays_of_every_type_are_read_as_scipy_reads_them(tmp_path, dtype, compressed):
    path = tmp_path / "a.mat"
    io.savemat(path, {"note": "x", "a": ARRAY.astype(dtype), "b": ARRAY}, do_compression=compressed)
    found = read_variable(path, "a", 3)
    assert list(found) == ["note", "a", "b"]
    assert found["a"].kind in NUMBERS
    assert found["b"].numbers is None
    np.testing.assert_array_equal(found["a"].numbers, io.loadmat(path)["a"])
    assert found["a"].numbers.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 1, 2), "u1"), ((1, 2, 2), "u1"), ((1, 1, 2), "u2"), ((1, 1, 5), "u1")]
)
def test_few_numbers_stand_in_their_tag(tmp_path, shape, dtype):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    io.savemat(tmp_path / "a.mat", {"a": values})
    np.testing.assert_array_equal(read_variable(tmp_path / "a.mat", "a", 3)["a"].numbers, values)


def test_other_kinds_are_named_and_not_read(tmp_path):
    path = tmp_path / "a.mat"
    values = {
        "text": "abc",
        "record": {"a": 1},
        "cell": np.array([1, "x"], dtype=object),
        "truth": ARRAY > 3,
        "complex": ARRAY + 1j,
        "flat": ARRAY[0],
        "none": np.zeros((0, 3, 4)),
    }
    io.savemat(path, values)
    kinds = {name: read_variable(path, name, 3)[name] for name in values}
    assert {name: found.kind for name, found in kinds.items()} == {
        "text": "char",
        "record": "struct",
        "cell": "cell",
        "truth": "logical",
        "complex": "complex double",
        "flat": "int64",
        "none": "double",
    }
    assert all(found.numbers is None for found in kinds.values())
    assert kinds["flat"].shape == (3, 4)


def part(order, kind, data):
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def file(order, shape, numbers, kind=6, stored=9, compressed=False, length=None):
    """Return a file with the variable "a", by hand."""
    content = part(order, 6, struct.pack(f"{order}II", kind, 0))
    content += part(order, 5, struct.pack(f"{order}{len(shape)}i", *shape)) + part(order, 1, b"a")
    content += struct.pack(f"{order}II", stored, len(numbers) if length is None else length) + numbers
    element = struct.pack(f"{order}II", 14, len(content)) + content
    if compressed:
        data = zlib.compress(element)
        element = struct.pack(f"{order}II", 15, len(data)) + data
    endian = b"IM" if order == "<" else b"MI"
    return b"by hand".ljust(124) + struct.pack(f"{order}H", 0x0100) + endian + element


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
def test_both_byte_orders_are_read(tmp_path, order, compressed):
    numbers = ARRAY.astype(f"{order}f8").tobytes(order="F")
    (tmp_path / "a.mat").write_bytes(file(order, ARRAY.shape, numbers, compressed=compressed))
    np.testing.assert_array_equal(read_variable(tmp_path / "a.mat", "a", 3)["a"].numbers, ARRAY)


GOOD = {"order": "<", "shape": (2, 3, 4), "numbers": bytes(192)}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": (2, 3, 5)}, "not those of shape"),
        ({"shape": (2, -3, -4)}, "has the shape"),
        ({"shape": (1,) * 40}, "where type 5 is due"),
        ({"stored": 14}, "unknown type 14"),
        ({"shape": (1 << 12, 1 << 10, 1 << 6), "length": (1 << 31)}, "cut off"),
        ({"length": 1 << 31, "shape": (2, 1 << 14, 1 << 13)}, "cut off"),
    ],
)
def test_what_a_file_promises_is_not_believed(tmp_path, changes, sentence, compressed):
    (tmp_path / "a.mat").write_bytes(file(**{**GOOD, **changes}, compressed=compressed))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=sentence):
            read_variable(tmp_path / "a.mat", "a", 3)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compressed", [False, True])
def test_every_way_to_cut_a_file_is_noticed(tmp_path, compressed):
    path = tmp_path / "a.mat"
    rng = np.random.default_rng(0)
    whole = file("<", (2, 3, 4), rng.random(24).tobytes(), compressed=compressed)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length == 128:
            assert read_variable(path, "a", 3) == {}  # a file without variables
            continue
        with pytest.raises(ValueError, match=r"cut off|does not begin"):
            read_variable(path, "a", 3)


def test_damaged_compressed_numbers_are_noticed(tmp_path):
    whole = bytearray(file("<", (2, 3, 4), np.random.default_rng(0).random(24).tobytes(), compressed=True))
    whole[-1] ^= 1  # of the checksum
    (tmp_path / "a.mat").write_bytes(bytes(whole))
    with pytest.raises(zlib.error):
        read_variable(tmp_path / "a.mat", "a", 3)
