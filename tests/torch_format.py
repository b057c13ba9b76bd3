"""Write what ``torch.save(state_dict)`` writes, instruction by instruction and without PyTorch.

Checked once against PyTorch 2.13: its files have the same instructions, plus more memo entries.
"""

from __future__ import annotations

import pickle
import struct
import zipfile

import numpy as np

STORAGES = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
}
HEAD = b"\x80\x02"  # protocol 2
MAGIC = 0x1950A86A20F9469CFC6C


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key, kind, length, size, stride, offset=0, *, view=None, function="_rebuild_tensor_v2"):
    """Return the instructions for a tensor; `view` is None, or the legacy form's (start, length) of a storage view."""
    identity = text("storage") + name("torch", STORAGES.get(kind, kind)) + text(key) + text("cpu") + number(length)
    if view != "zip":
        identity += b"N" if view is None else b"(" + text("view") + numbers(view)[1:]
    rest = b"\x89" + name("collections", "OrderedDict") + b")R" if function.endswith("v2") else b""
    arguments = b"((" + identity + b"tQ" + number(offset) + numbers(size) + numbers(stride) + rest + b"t"
    return name("torch._utils", function) + arguments + b"R"


def save_alone(path, array, kind="f4", form="zip"):
    """Write one tensor that is in no dictionary, of the storage type `kind`."""
    array = np.ascontiguousarray(array)
    stride = [size // array.itemsize for size in array.strides]
    program = HEAD + tensor("0", kind, array.size, array.shape, stride, view="zip" if form == "zip" else None) + b"."
    if form == "zip":
        write_zip(path, program, {"0": array.tobytes()})
    else:
        write_stream(path, program, {"0": array.tobytes()}, itemsize=array.itemsize)


def dictionary(items):
    """Return the pickle of an OrderedDict with an attribute, as state dictionaries have."""
    content = b"".join(text(key) + value for key, value in items.items())
    attribute = b"}" + text("_metadata") + b"}sb"
    return HEAD + name("collections", "OrderedDict") + b")Rq\x00(" + content + b"u" + attribute + b"."


def write_zip(path, program, storages, *, byteorder=b"little", compression=zipfile.ZIP_STORED):
    """Write the form of PyTorch 1.6 and later; `storages` maps keys to bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
        archive.writestr("model/version", b"3\n")


def write_stream(path, program, storages, *, itemsize=4, little=True):
    """Write the older form."""
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(value, 2) for value in (MAGIC, 1001, system)]
    parts += [program, pickle.dumps(list(storages), 2)]
    parts += [struct.pack("<q", len(data) // itemsize) + data for data in storages.values()]
    path.write_bytes(b"".join(parts))


def save(path, arrays, form="zip"):
    """Write float32 arrays as contiguous tensors with a storage each."""
    items, storages = {}, {}
    for index, (key, array) in enumerate(arrays.items()):
        array = np.ascontiguousarray(array, "<f4")
        stride = [size // 4 for size in array.strides]
        view = "zip" if form == "zip" else None
        items[key] = tensor(str(index), "f4", array.size, array.shape, stride, view=view)
        storages[str(index)] = array.tobytes()
    (write_zip if form == "zip" else write_stream)(path, dictionary(items), storages)
