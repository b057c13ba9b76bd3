"""Class maps, states of counts, statistics and priors: whatever the bytes, they are read or refused in our words."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import pytest
from scipy import io as matlab_io

from cbst_mx.labelling import MapFolder, State, count
from cbst_mx.labelling.map_files import array_bytes
from cbst_mx.selftrain import prior_files
from cbst_mx.selftrain.class_statistics import ImageStatistics
from tests import torch_format
from tests.fuzz.harness import COUNT, fuzz
from tests.maps import random_maps, write_maps

MAP = random_maps(0, (3, 4, 5))
WORDS = [
    b"'descr'", b"'shape'", b"'fortran_order': True", b"<f8", b">f4", b"<f2", b"|O", b"<U9", b"<c8", b"|b1", b"<i8",
    b"|V4", b"<M8[D]", b"(1, 3, 4, 5)", b"(9223372036854775808, 4, 5)", b"(3, 0, 5)", b"(-3, 4, 5)", b"()", b"True",
    b"9" * 5000, b"(" * 300, b"{", b"}", b"\n", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x03\x00",
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b".npy", b"\xff\xff\xff\xff", b"\x00\x00\xc0\x7f", b"\x08\x00",
    b"\x0c\x00",
]  # fmt: skip


def saved(save: Callable[..., None], *arguments: object, **arrays: object) -> bytes:
    stream = io.BytesIO()
    save(stream, *arguments, **arrays)
    return stream.getvalue()


def npz(arrays: dict[str, np.ndarray]) -> list[bytes]:
    """Return the archive stored, where mutations reach the numbers and headers, and compressed."""
    return [saved(np.savez, **arrays), saved(np.savez_compressed, **arrays)]


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def fuzz_archive(kind: str, path: Path, read: Callable[[], object], archives: Sequence[dict[str, np.ndarray]]) -> None:
    """Read mutated archives, and sound ones in which one member is mutated: checksums let nothing else through."""

    def read_archive(content: bytes) -> None:
        path.write_bytes(content)
        read()

    fuzz(kind, read_archive, [content for arrays in archives for content in npz(arrays)], WORDS)
    members = [(arrays, name) for arrays in archives for name in arrays]
    for arrays, name in members:
        data = {key: saved(np.save, array) for key, array in arrays.items()}

        def read_member(content: bytes, data: dict[str, bytes] = data, name: str = name) -> None:
            with zipfile.ZipFile(path, "w") as archive:
                for key, value in data.items():
                    archive.writestr(f"{key}.npy", content if key == name else value)
            read()

        fuzz(kind, read_member, [data[name]], WORDS, count=-(-COUNT // len(members)))


def fuzz_folder(kind: str, folder: Path, name: str, good: Sequence[bytes], key: str | None = None) -> None:
    """Read maps as the labelling job does, up to their confidences."""
    folder.mkdir()

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        opened = MapFolder.open(folder, key=key)
        if opened.sizes[0][0] * opened.sizes[0][1] < 10_000:
            _ = opened.view(0).confidence

    fuzz(kind, read, good, WORDS)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_maps(tmp_path, order):
    good = [saved(np.save, np.asarray(array, order=order)) for array in (MAP, MAP[None], MAP.astype(">f8"))]
    fuzz_folder("maps (.npy)", tmp_path / "maps", "a.npy", good)


def test_headers_of_npy_maps(tmp_path):
    whole = saved(np.save, MAP)
    folder = tmp_path / "maps"
    folder.mkdir()

    def read(content: bytes) -> None:
        (folder / "a.npy").write_bytes(content + whole[128:])
        MapFolder.open(folder).maps(0)

    fuzz("maps (.npy)", read, [whole[:128]], WORDS)


def test_npz_maps(tmp_path):
    fuzz_folder("maps (.npz)", tmp_path / "maps", "a.npz", npz({"probability": MAP}))
    fuzz_folder("maps (.npz)", tmp_path / "named", "a.npz", npz({"x": MAP, "y": MAP}), key="y")


def test_pt_maps(tmp_path):
    for form in ("zip", "stream"):
        torch_format.save(tmp_path / form, {"probability": MAP}, form)
    fuzz_folder("maps (.pt)", tmp_path / "maps", "a.pt", [(tmp_path / form).read_bytes() for form in ("zip", "stream")])


def test_states(tmp_path):
    folder = MapFolder.open(write_maps(tmp_path / "maps", random_maps(1, (2, 3, 4, 5))))
    path = tmp_path / "state.npz"
    state = State.new(folder, "paper")
    count(folder, state, path)
    first = arrays_of(path)
    state.counts.refine(["class-balanced"], [0.2])
    count(folder, state, path)

    def read() -> None:
        loaded = State.load(path)
        loaded.check(folder, "paper")
        loaded.check_finished()
        if loaded.counts.refining:
            loaded.counts.thresholds("class-balanced", 0.2)
        else:
            State.new(folder, "paper").merge(loaded, "other")

    fuzz_archive("states", path, read, [first, arrays_of(path)])


def test_statistics(tmp_path):
    statistics = ImageStatistics(3, ["a", "b", "c"])
    for index in range(3):
        statistics.add_pixels(f"image-{index}", MAP.max(axis=0), MAP.argmax(axis=0).astype(np.uint8))
    path = tmp_path / "statistics.npz"
    statistics.save(path)

    def read() -> None:
        loaded = ImageStatistics.load(path)
        if len(loaded):
            loaded.scores()

    fuzz_archive("statistics", path, read, [arrays_of(path)])


def test_priors(tmp_path):
    path = tmp_path / "prior.npz"
    prior_files.save(path, MAP, {"names": ["a", "b", "c"]})

    def read() -> None:
        prior_files.load(path, 3, ["a", "b", "c"])
        array_bytes(path, "prior")

    fuzz_archive("priors (.npz)", path, read, [arrays_of(path), {"prior": MAP}])


def test_matlab_priors(tmp_path):
    path = tmp_path / "prior.mat"
    good = [
        saved(matlab_io.savemat, {"note": "x", "prior_array": MAP.astype(dtype)}, do_compression=compressed)
        for dtype in (np.float64, np.uint8)
        for compressed in (False, True)
    ]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        prior_files.read_matlab(path)

    fuzz(
        "priors (.mat)",
        read,
        good,
        [b"MATLAB", b"\x0e\x00\x00\x00", b"\x0f\x00\x00\x00", b"\x09\x00\x00\x00", b"\xff\xff\xff\x7f", b"MI"],
    )
