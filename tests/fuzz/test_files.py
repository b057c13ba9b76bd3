"""Images, network parameters, their sidecars and PyTorch files: whatever the bytes, read or refused in our words."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.image_files import MOST_PIXELS, read_header, read_label, read_rgb, read_rgb16
from cbst_mx.data.image_headers import check_whole
from cbst_mx.data.listing import all_images
from cbst_mx.errors import DataError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import load_arrays, save_parameters
from cbst_mx.networks.params_files import MAGIC
from cbst_mx.networks.sidecars import read_sidecar, sidecar_path
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.networks.torch_files import read_tensors, read_torch
from symbols.backend import mx
from tests import torch_format
from tests.fuzz.harness import fuzz

pytestmark = [  # which change no result: sizes have a limit of ours, and pickles are only looked at
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning"),
]
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
IDS = RNG.integers(0, 19, (9, 13), dtype=np.uint8)
IMAGE_WORDS = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"\x89PNG\r\n\x1a\n", b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND",
    b"eXIf", b"iCCP", b"acTL", b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xc2", b"\xff\xe1", b"Exif\0\0", b"II*\0", b"MM\0*",
    b"II+\0", b"BM", b"RIFF", b"WEBP", b"VP8X", b"VP8L", b"GIF89a", b"P5 ", b"P6 ",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\x75\x30", b"\x10\x02", b"%PDF-1.4", b"8BPS", b"ftypavif",
]  # fmt: skip


def picture(array: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


IMAGES = {
    "png": [picture(COLOURS, "PNG"), picture(IDS, "PNG")],
    "jpeg": [picture(COLOURS, "JPEG"), picture(COLOURS, "JPEG", progressive=True)],
    "tiff": [picture(COLOURS, "TIFF"), picture(IDS, "TIFF", compression="tiff_lzw")],
    "others": [picture(COLOURS, kind) for kind in ("BMP", "WEBP", "PPM")] + [picture(IDS, "GIF")],
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(tmp_path, kind):
    path = tmp_path / "a.png"  # whatever it is: the content decides

    def read(content: bytes) -> None:
        path.write_bytes(content)
        refused = []
        for reader in (read_header, check_whole, read_rgb, read_label, read_rgb16):
            try:
                reader(path)
            except DataError as error:
                refused.append(error)
        if len(refused) == 5:
            raise refused[0]

    def pixels(content: bytes) -> int:
        """Return the pixels that an image states, of which no more than are allowed count."""
        path.write_bytes(content)
        try:
            header = read_header(path)
        except DataError:
            return 0
        return min(header.height * header.width, MOST_PIXELS)

    fuzz("images", read, IMAGES[kind], IMAGE_WORDS, pixels=pixels)
    assert len(all_images(tmp_path).files) == 1


def test_torch_files(tmp_path):
    arrays = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(2, np.float32)}
    good = []
    for form in ("zip", "stream"):
        torch_format.save(tmp_path / form, arrays, form)
        good.append((tmp_path / form).read_bytes())
    path = tmp_path / "w.pth"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_tensors(path)
        read_torch(path)

    words = [
        b"c__builtin__\neval\n", b"cos\nsystem\n", b"ctorch\nLongStorage\n", b"X\xff\xff\xff\x7f", b"(", b"t", b"R",
        b"Q", b"u",
        b"J\xff\xff\xff\x7f", b"\x8a\xff", b"}", b"]", b"q\0", b"h\0", b".", b"PK\x01\x02", b"PK\x05\x06", b"\x08\0",
    ]  # fmt: skip
    fuzz("PyTorch files", read, good, words)


def test_params(tmp_path):
    path = tmp_path / "w.params"
    arrays = {
        kind: mx.nd.array(np.arange(12).reshape(3, 4), dtype=kind) for kind in ("float32", "float16", "uint8", "int64")
    }
    mx.nd.save(str(path), {**arrays, "arg:w": mx.nd.ones((2, 3, 1, 1))})
    legacy = struct.pack("<III", 2, 2, 3) + struct.pack("<iii", 1, 0, 0) + np.arange(6, dtype="<f4").tobytes()
    older = struct.pack("<QQQ", MAGIC, 0, 1) + legacy + struct.pack("<QQ", 1, 1) + b"w"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for array in load_arrays(path).values():
            array.asnumpy()

    words = [
        b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\x96\x98\0\0\0\0\0", b"\0\xe1\xf5\x05\0\0\0\0", b"\x0c\0\0\0",
        b"\x01\0\0\0",
        b"\xc8\xfa\x93\xf9", b"\xc9\xfa\x93\xf9", b"\xca\xfa\x93\xf9", b"\x12\x01\0\0\0\0\0\0", b"\xff" * 8, b"\0" * 8,
    ]  # fmt: skip
    fuzz("network parameters", read, [path.read_bytes(), older], words)


def test_sidecars(tmp_path):
    path = tmp_path / "w.params"
    network = NetworkSpec("fcn8s", 19, {"width": 0.125, "upsampling": "learned"}, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    save_parameters(path, build_network(network, mx.cpu(), seed=0), network, CITYSCAPES_19)
    side = sidecar_path(path)
    good = side.read_bytes()
    path.write_bytes(b"")

    def read(content: bytes) -> None:
        side.write_bytes(content)
        found, _, _ = read_sidecar(path)
        if found != network:
            build_network(found, mx.cpu(), classifier=True)

    words = [
        b"9" * 400, b"9" * 5000, b"1e999", b"NaN", b"-1", b"null", b"[]", b"{}", b"true", b'"\\ud800"', b"[" * 2000,
        b'"', b",",
        b'"width": ', b'"fcn8s"', b'"resnet38"', b"\xef\xbb\xbf", b"\xff",
    ]  # fmt: skip
    fuzz("sidecars", read, [good, json.dumps(json.loads(good)).encode()], words)
