"""Read the tensors of a PyTorch file without PyTorch and without running anything the file says.

A ``.pth`` file is a pickle, a small program, beside raw numbers. Python's own unpickler calls whatever function the
program names; here its instructions are carried out one by one by a machine that knows only those that describe
dictionaries of tensors, and that calls nothing but the few functions written below.

Both forms are read: the zip archive of PyTorch 1.6 and later (``*/data.pkl`` with one stored record per storage under
``*/data/``) and the older stream of pickles (magic number, protocol, system, object, storage keys) with the storages
behind them. A storage is a flat array; a tensor is a view of one with offset, sizes and strides, all in elements.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Collection, Mapping, Union

import numpy as np

from cbst_mx.errors import CheckpointError
from cbst_mx.files import open_file
from cbst_mx.messages import listed

__all__ = ["LONGEST_NAME", "looks_like_torch", "read_tensors", "read_torch"]

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # the instruction that states the protocol, from protocol 2 on
# What a file of weights stays far below; a file of a few kB may otherwise describe gigabytes.
LONGEST_NAME = 200  # characters of the name of a tensor
_MOST_AXES = 32
_MOST_PARTS = 1_000_000  # of all that is handed to functions
_MOST_SHARED = 4  # elements of the tensors, as a multiple of those of the storages: tied weights are stored once
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_BFLOAT16 = np.dtype([("upper half", "<u2")])  # of float32
_STORAGES: dict[str, np.dtype] = {
    "torch.BFloat16Storage": _BFLOAT16,
    "torch.BoolStorage": np.dtype("u1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.ShortStorage": np.dtype("<i2"),
}
# Under which the weights stand in what trainings save, the likeliest first.
_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "network", "net", "module")
_DEEPEST = 2  # dictionaries within the outermost; the state of an optimizer is deeper

# The ways in which cut or hostile bytes fail to be a dictionary of tensors, below and in the standard library.
_UNREADABLE = (
    *(ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError, EOFError),
    *(struct.error, zipfile.BadZipFile),
)


class _DamagedError(ValueError):
    """The file is not what the format asks for; the message completes "FILE is damaged: "."""


@dataclass(frozen=True)
class _Name:
    """A function, class or storage type that the pickle names; never the thing itself."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    length: int  # elements
    start: int  # where a storage that is a view of another one begins


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def looks_like_torch(head: bytes) -> bool:
    """Tell from the first bytes whether a file may be PyTorch's; :func:`read_torch` refuses what is not."""
    return head.startswith((_ZIP, _PICKLE))


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Read the named tensors of a PyTorch file.

    Parameters
    ----------
    path : Path
        A dictionary of tensors as ``torch.save(model.state_dict(), path)`` writes it, or a dictionary that holds one:
        the only one, or the one under a usual key such as ``"state_dict"`` or ``"model"``.

    Returns
    -------
    dict of str to ndarray, float32
        In the file's order; contiguous copies. Entries that are no tensors are left out.

    Raises
    ------
    CheckpointError
        If the file is damaged, is another archive or pickle, names anything that is not needed for tensors, or holds
        several dictionaries of tensors of which none is under a usual key.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which the caller refuses
        return {name: np.asarray(array, np.float32) for name, array in _read(Path(path), alone=False).items()}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch file in the types that they are stored in.

    Parameters
    ----------
    path : Path
        As for :func:`read_torch`, or a tensor by itself, as ``torch.save(tensor, path)`` writes it.

    Returns
    -------
    dict of str to ndarray
        In the file's order; contiguous copies, bool as uint8, bfloat16 as float32. A tensor by itself has the empty
        name.

    Raises
    ------
    CheckpointError
        As :func:`read_torch`.
    """
    return _read(Path(path), alone=True)


def _read(path: Path, *, alone: bool) -> dict[str, np.ndarray]:
    """Return the tensors of a file as they are stored; with `alone`, also one that is in no dictionary."""
    try:
        with open_file(path) as stream:
            is_zip = stream.read(len(_ZIP)) == _ZIP
            content, storages = _read_zip(path) if is_zip else _read_stream(stream)
        if isinstance(content, _Tensor) and alone:
            tensors = {"": content}
        elif isinstance(content, dict):
            tensors = {_text(name): value for name, value in _weights(content).items() if isinstance(value, _Tensor)}
        else:
            raise _DamagedError("it holds no dictionary of tensors")
        _check_total(tensors.values(), storages)
        return {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except _ForbiddenError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        what = error if isinstance(error, _DamagedError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is damaged or no PyTorch file of tensors: {what}") from error


# ---------------------------------------------------------------------------------------------- the two file forms

_Storages = Mapping[str, Union[bytes, memoryview]]


def _read_zip(path: Path) -> tuple[Any, _Storages]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _DamagedError("the zip archive has no data.pkl (NumPy's .npz and other archives are not read)")
        folder = pickles[0][: -len("data.pkl")]
        left = path.stat().st_size

        def record(name: str) -> bytes:
            nonlocal left
            entry = archive.getinfo(folder + name)
            if entry.compress_type != zipfile.ZIP_STORED:  # PyTorch never compresses, and a bomb would
                raise _DamagedError(f"record {name!r} is compressed")
            left -= entry.file_size
            if left < 0:
                raise _DamagedError("its records overlap")
            return archive.read(entry)

        if folder + "byteorder" in archive.namelist() and record("byteorder") != b"little":
            raise _DamagedError("its numbers are big-endian")
        found: dict[str, _Storage] = {}
        content = _run(io.BytesIO(record("data.pkl")), found)
        return content, {key: record(f"data/{key}") for key in found}


def _read_stream(stream: IO[bytes]) -> tuple[Any, _Storages]:
    # Mapped, so that a length the file lies about cannot ask for memory.
    data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    found: dict[str, _Storage] = {}
    if _run(data, found) != _MAGIC:
        raise _DamagedError("it is a Python pickle of something else")
    if _run(data, found) != _PROTOCOL or _run(data, found)["little_endian"] is not True:
        raise _DamagedError("it is of an unknown protocol or big-endian")
    content = _run(data, found)
    keys = _run(data, found)
    view, position, storages = memoryview(data), data.tell(), {}
    for key in keys:
        storage = found[_text(key)]
        length = int.from_bytes(view[position : position + 8], "little")
        end = position + 8 + length * storage.dtype.itemsize
        if length != storage.length or end > len(view):
            raise _DamagedError(f"storage {key!r} is cut off or not of the stated {storage.length} elements")
        storages[storage.key] = view[position + 8 : end]
        position = end
    return content, storages


def _weights(content: dict[str | int, Any]) -> dict[str | int, Any]:
    """Return the dictionary of tensors: the outermost, or one within it."""
    places: dict[str, dict[str | int, Any]] = {}
    seen: set[int] = set()
    level = [("", content)]
    for _ in range(_DEEPEST + 1):
        below = []
        for place, entries in level:
            if id(entries) in seen:  # the same dictionary may stand in many places
                continue
            seen.add(id(entries))
            if any(isinstance(value, _Tensor) for value in entries.values()):
                places[place] = entries
            below += [(f"{place}[{_text(key)!r}]", value) for key, value in entries.items() if isinstance(value, dict)]
        level = below
    for place in (*(f"[{key!r}]" for key in _USUAL_KEYS), ""):
        if place in places:
            return places[place]
    if len(places) > 1:
        raise _ForbiddenError(
            f"its tensors are in {listed(list(places))} and none of these is a usual place ({', '.join(_USUAL_KEYS)}): "
            "save the one that is meant by itself"
        )
    if not places:
        deeper = f", or only in more than {_DEEPEST + 1} dictionaries within each other" if level else ""
        raise _ForbiddenError(f"it holds no tensor by name{deeper}")
    return next(iter(places.values()))


def _check_total(tensors: Collection[_Tensor], storages: _Storages) -> None:
    """Refuse a file whose tensors, copied, would need many times its size."""
    there = {t.storage.key: len(storages[t.storage.key]) // t.storage.dtype.itemsize for t in tensors}
    asked = 0
    for tensor in tensors:
        asked += math.prod(tensor.size)
    if asked > _MOST_SHARED * sum(there.values()):
        raise _DamagedError(f"its tensors have more than {_MOST_SHARED} times as many elements as its storages")


def _array(tensor: _Tensor, storages: _Storages) -> np.ndarray:
    dtype, numbers = tensor.storage.dtype, np.frombuffer(storages[tensor.storage.key], np.uint8)
    if numbers.size != tensor.storage.length * dtype.itemsize:
        raise _DamagedError(f"storage {tensor.storage.key!r} has not the stated {tensor.storage.length} elements")
    first = tensor.offset + tensor.storage.start
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride))
    count = math.prod(tensor.size)
    # a stride of 0 can claim more elements than there are: no weight does
    if count and (last >= tensor.storage.length or count > tensor.storage.length):
        raise _DamagedError("a tensor reaches beyond its storage")
    if not count:
        return np.zeros(tensor.size, np.float32 if dtype == _BFLOAT16 else dtype)
    strides = [stride * dtype.itemsize for stride in tensor.stride]
    view: np.ndarray = np.ndarray(tensor.size, dtype, numbers.data, first * dtype.itemsize, strides)
    if dtype == _BFLOAT16:
        return (np.array(view["upper half"], np.uint32, order="C") << 16).view(np.float32)
    return np.array(view, order="C")


# ------------------------------------------------------------------------------------------------ the pickle machine


class _ForbiddenError(ValueError):
    """The file is whole, but not read; the message completes "FILE is refused: "."""


def _text(value: Any) -> str:
    """Return a name, after checking that it is one: anything else might take for ever to be written into a message."""
    if type(value) is not str and type(value) is not int:
        raise _DamagedError("a name is no text")
    text = str(value)
    if len(text) > LONGEST_NAME:
        raise _DamagedError(f"a name is longer than {LONGEST_NAME} characters")
    return text


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise _DamagedError("a tensor has no storage")
    tensor = _Tensor(storage, offset, tuple(size), tuple(stride))
    numbers = (*tensor.size, *tensor.stride, offset, storage.start)
    if len(tensor.size) != len(tensor.stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise _DamagedError("a tensor's sizes, strides or offset are no natural numbers")
    if len(tensor.size) > _MOST_AXES:
        raise _DamagedError(f"a tensor has more than {_MOST_AXES} axes")
    return tensor


def _ordered(pairs: Any = ()) -> dict[str | int, Any]:
    return _fill({}, [part for key, value in pairs for part in (key, value)])


def _fill(target: Any, parts: list[Any]) -> dict[str | int, Any]:
    """Put key, value, key, value, ... into a dictionary."""
    for key, value in zip(parts[::2], parts[1::2]):
        # the hash of nested tuples recurses in C, as deep as the file likes
        if not isinstance(target, dict) or not isinstance(key, (str, int)):
            raise _DamagedError("a dictionary has a key that is neither text nor number")
        target[key] = value
    return target


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": tuple,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _tensor,  # before 0.4, as in the VGG-16 file of 2017
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.nn.parameter.Parameter": lambda data, *_: data,
}
# What trainings keep beside the tensors, such as the best score; left out of what is read.
_LEFT_OUT = {
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray"),
    *("argparse.Namespace", "torch.device"),
}
_CALLS.update(dict.fromkeys(_LEFT_OUT, lambda *_: None))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}


def _name(module: Any, name: Any) -> _Name:
    full = f"{_text(module)}.{_text(name)}".replace("torch.cuda.", "torch.")  # where a storage lived does not matter
    if full not in _CALLS and full not in _STORAGES:
        asked = full if full.isprintable() else repr(full)
        if full.startswith("torch.") and full.endswith("Storage"):
            raise _ForbiddenError(f"its tensors must be of {', '.join(_STORAGES)}, got {asked}")
        raise _ForbiddenError(
            f"its pickle asks for {asked}, which tensors do not need; nothing was run. "
            "torch.save(model.state_dict(), path) writes tensors alone"
        )
    return _Name(full)


def _storage(identity: Any, found: dict[str, _Storage]) -> _Storage:
    """Note the storage that a persistent id ("storage", type, key, location, elements[, view]) stands for."""
    kind, storage_type, key, _, length, *view = identity
    if kind != "storage" or not isinstance(storage_type, _Name) or storage_type.name not in _STORAGES:
        raise _DamagedError("it has an unknown persistent id")
    key = _text(key)
    if type(length) is not int or not 0 <= length < 2**48:
        raise _DamagedError(f"storage {key!r} has no number of elements, or too many")
    start = view[0][1] if view and view[0] is not None else 0  # view: (key, start, length)
    storage = _Storage(key, _STORAGES[storage_type.name], length, start)
    before = found.setdefault(storage.key, storage)
    if (before.dtype, before.length) != (storage.dtype, storage.length):
        raise _DamagedError(f"storage {key!r} is stated twice, differently")
    return storage


def _run(stream: Any, found: dict[str, _Storage]) -> Any:
    """Carry out one pickle and return the object it describes.

    Longer than other functions: one branch per instruction of the format, in one loop over the stack.

    Parameters
    ----------
    stream : file-like
        Positioned at the pickle; left behind it.
    found : dict
        Gets the storages that the object refers to, by key.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    parts = 0

    def since_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        code = opcode.name
        if code in ("PROTO", "FRAME"):
            pass
        elif code in _LITERALS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code == "MARK":
            marks.append(len(stack))
        elif code == "EMPTY_DICT":
            stack.append({})
        elif code == "EMPTY_LIST":
            stack.append([])
        elif code == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _fill(stack[-1], [key, value])
        elif code == "SETITEMS":
            values = since_mark()
            _fill(stack[-1], values)
        elif code in ("APPEND", "APPENDS"):
            values = [stack.pop()] if code == "APPEND" else since_mark()
            if not isinstance(stack[-1], list):
                raise _DamagedError("something is appended to what is no list")
            stack[-1].extend(values)
        elif code == "TUPLE":
            stack.append(tuple(since_mark()))
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif code == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_name(module, name))
        elif code in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Name) or function.name not in _CALLS:
                raise _DamagedError("something is called that is no function")
            parts += sum(len(part) for part in (arguments, *arguments) if isinstance(part, (list, tuple, dict)))
            if parts > _MOST_PARTS:
                raise _DamagedError(f"its functions are given more than {_MOST_PARTS} parts")
            stack.append(_CALLS[function.name](*arguments))
        elif code == "BUILD":
            stack.pop()  # attributes of dictionaries and parameters: versions, hooks
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop(), found))
        elif code == "STOP":
            return stack.pop()
        else:
            raise _ForbiddenError(f"its pickle has the instruction {code}, which tensors do not need")
    raise _DamagedError("its pickle does not end")
