"""PyTorch files without PyTorch: tensors come out right, nothing in a file is run, damage is one sentence."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest

from cbst_mx.errors import CheckpointError
from cbst_mx.networks.torch_files import read_tensors, read_torch
from tests import torch_format
from tests.torch_format import HEAD, MAGIC, dictionary, name, tensor, text, write_stream, write_zip


def refused(path):
    with pytest.raises(CheckpointError) as error:
        read_torch(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------------------------------------------------------------------------------- the tensors


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_views_of_a_storage_are_read(tmp_path, form):
    base = np.arange(40, dtype="<f4")
    view = "zip" if form == "zip" else None
    items = {
        "whole": tensor("7", "f4", 40, (5, 8), (8, 1), view=view),
        "transposed": tensor("7", "f4", 40, (8, 5), (1, 8), view=view),
        "cut": tensor("7", "f4", 40, (2, 3), (8, 1), 10, view=view),
        "scalar": tensor("7", "f4", 40, (), (), 39, view=view),
        "empty": tensor("7", "f4", 40, (0, 4), (4, 1), view=view),
        "old": tensor("7", "f4", 40, (40,), (1,), view=view, function="_rebuild_tensor"),
        "epoch": b"K\x03",  # a number, which is no tensor
    }
    path = tmp_path / "weights.any"
    (write_zip if form == "zip" else write_stream)(path, dictionary(items), {"7": base.tobytes()})
    tensors = read_torch(path)
    square = base.reshape(5, 8)
    expected = {
        "whole": square,
        "transposed": square.T,
        "cut": square[1:3, 2:5],
        "scalar": base[39],
        "empty": np.zeros((0, 4)),
        "old": base,
    }
    assert list(tensors) == list(expected)
    for key, value in tensors.items():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous
        np.testing.assert_array_equal(value, expected[key])


def test_a_storage_that_is_a_view_begins_where_it_says(tmp_path):
    path = tmp_path / "w.pth"
    items = {"a": tensor("0", "f4", 10, (2, 2), (2, 1), 1, view=(3, 5))}
    write_stream(path, dictionary(items), {"0": np.arange(10, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(read_torch(path)["a"], [[4, 5], [6, 7]])


@pytest.mark.parametrize("kind", ["f2", "f8", "i8", "i4", "i2"])
def test_other_numbers_become_float32(tmp_path, kind):
    values = np.array([1, -2, 300], "<" + kind)
    path = tmp_path / "w.pth"
    write_zip(path, dictionary({"a": tensor("0", kind, 3, (3,), (1,), view="zip")}), {"0": values.tobytes()})
    array = read_torch(path)["a"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1, -2, 300])


@pytest.mark.parametrize(
    ("storage", "data", "values"),
    [
        ("BFloat16Storage", np.array([1, -2.5, np.pi], "<f4").view("<u4") >> 16, [1, -2.5, 3.140625]),
        ("BoolStorage", [1, 0, 1], [1, 0, 1]),
        ("ByteStorage", [1, 0, 255], [1, 0, 255]),
        ("CharStorage", [1, 0, 255], [1, 0, -1]),
    ],
)
def test_tensors_of_few_bits_are_read(tmp_path, storage, data, values):
    data = np.asarray(data).astype("<u2" if storage == "BFloat16Storage" else "u1")
    for transposed in (False, True):
        size, stride = ((3, 1), (1, 3)) if transposed else ((3,), (1,))
        items = {
            "a": tensor("0", storage, 3, size, stride, view="zip"),
            "b": tensor("1", "f4", 1, (1,), (1,), view="zip"),
        }
        write_zip(tmp_path / "w.pth", dictionary(items), {"0": data.tobytes(), "1": np.float32(2).tobytes()})
        found = read_torch(tmp_path / "w.pth")
        assert found["a"].dtype == np.float32
        np.testing.assert_array_equal(found["a"].ravel(), values)
        np.testing.assert_array_equal(found["b"], [2])


@pytest.mark.parametrize(
    "content",
    [b"}.", b"}" + text("optimizer") + b"}" + text("lr") + b"K\x01ss.", b"}" + text("epoch") + b"K\x03s."],
    ids=["empty", "numbers within", "a number"],
)
def test_a_file_without_tensors_says_so(tmp_path, content):
    write_zip(tmp_path / "w.pth", HEAD + content, {})
    assert "holds no tensor" in refused(tmp_path / "w.pth")


def test_tensors_in_too_many_dictionaries_are_not_said_to_be_missing(tmp_path):
    inside = dictionary({"a": tensor("0", "f4", 1, (1,), (1,), view="zip")})[2:-1]
    for key in "dcba":
        inside = b"}" + text(key) + inside + b"s"
    write_zip(tmp_path / "w.pth", HEAD + inside + b".", {"0": np.float32(1).tobytes()})
    assert "in more than 3 dictionaries within each other" in refused(tmp_path / "w.pth")


ONE = tensor("0", "f4", 1, (1,), (1,), view="zip")
FUNCTION = name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = name("torch.nn.parameter", "Parameter") + b"(" + ONE + b"t\x81(\x89\x89Ntb"  # as in files of 2017
SPELLINGS = {
    "parameters": HEAD + b"}" + text("a") + PARAMETER + b"s.",
    "rebuilt parameters": HEAD + b"}" + text("a")
    + name("torch._utils", "_rebuild_parameter") + b"(" + ONE + b"\x88NtRs.",
    # OrderedDict([["a", ...]])
    "pairs of Python 2": HEAD + name("collections", "OrderedDict") + b"(](](U\x01a" + ONE + b"eetR.",
    # frame, memo, short text, global from the stack
    "protocol 4": b"\x80\x04\x95" + bytes(8) + b"}\x94\x8c\x01a"
    + ONE.replace(FUNCTION, b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93") + b"s.",
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_of_a_dictionary_are_read(tmp_path, spelling):
    path = tmp_path / "w.pth"
    write_zip(path, SPELLINGS[spelling], {"0": np.array([2.5], "<f4").tobytes()})
    assert {key: value.tolist() for key, value in read_torch(path).items()} == {"a": [2.5]}


# -------------------------------------------------------------------------------------------------- nothing is executed


class Attack:
    """Pickles to a call of os.system that makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def attacks(marker):
    """Return pickles that make the file `marker` when Python's unpickler loads them."""
    command = f"touch '{marker}'"
    python = f"__import__('os').system({command!r})"
    programs = [pickle.dumps({"weight": Attack(marker)}, protocol) for protocol in range(5)]
    programs += [HEAD + name("builtins", "eval") + b"(" + text(python) + b"tR."]
    programs += [b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."]  # INST
    programs += [HEAD + b"(" + name("os", "system") + text(command) + b"o."]  # OBJ
    return programs


@pytest.mark.parametrize("form", ["zip", "stream", "raw"])
def test_code_in_a_file_is_not_run(tmp_path, form):
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    for program in attacks(marker):
        pickle.loads(program)
        assert marker.exists()  # the attack is one
        marker.unlink()
        if form == "zip":
            write_zip(path, program, {})
        elif form == "stream":
            write_stream(path, program, {})
        else:
            path.write_bytes(program)
        sentence = refused(path)
        assert not marker.exists()
        if form != "raw":
            assert (
                "os.system" in sentence
                or "posix.system" in sentence
                or "builtins.eval" in sentence
                or ("instruction" in sentence)
            )


def test_the_refusal_names_what_the_pickle_asks_for(tmp_path):
    path = tmp_path / "w.pth"
    write_zip(path, HEAD + name("torch.nn.modules.container", "Sequential") + b").", {})
    assert refused(path) == (
        f"{path} is refused: its pickle asks for torch.nn.modules.container.Sequential, which tensors do not need; "
        "nothing was run. torch.save(model.state_dict(), path) writes tensors alone"
    )
    write_zip(path, dictionary({"a": tensor("0", "ComplexFloatStorage", 1, (1,), (1,), view="zip")}), {"0": bytes(8)})
    assert refused(path).startswith(f"{path} is refused: its tensors must be of torch.BFloat16Storage, ")
    assert refused(path).endswith("torch.ShortStorage, got torch.ComplexFloatStorage")


# --------------------------------------------------------------------------------------------------------------- damage


def good(path, form):
    items = {
        f"{i}.weight": tensor(str(i), "f4", 6, (2, 3), (3, 1), view="zip" if form == "zip" else None) for i in (0, 1)
    }
    storages = {str(i): np.arange(6, dtype="<f4").tobytes() for i in (0, 1)}
    (write_zip if form == "zip" else write_stream)(path, dictionary(items), storages)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_file_cut_anywhere_is_refused(tmp_path, form):
    path = tmp_path / "w.pth"
    good(path, form)
    data = path.read_bytes()
    assert len(read_torch(path)) == 2
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        refused(path)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_changed_bytes_never_do_more_than_fail(tmp_path, form):
    path = tmp_path / "w.pth"
    good(path, form)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(400):
        changed = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            changed[position] = rng.integers(256)
        path.write_bytes(bytes(changed))
        try:
            read_torch(path)
        except CheckpointError:
            failed += 1
    assert failed > 200  # most bytes matter; those of the older form's numbers do not show


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (tensor("0", "f4", 6, (2, 3), (3, 2), view="zip"), "reaches beyond its storage"),
        (tensor("0", "f4", 6, (2, 3), (3, 1), 1, view="zip"), "reaches beyond its storage"),
        (tensor("0", "f4", 6, (2**31 - 1, 2**31 - 1), (0, 0), view="zip"), "more than 4 times as many elements"),
        (tensor("0", "f4", 6, (2, 3), (3, -1), view="zip"), "no natural numbers"),
        (tensor("0", "f4", 6, (2, 3), (1,), view="zip"), "no natural numbers"),
        (tensor("0", "f4", 7, (7,), (1,), view="zip"), "storage '0' has not the stated 7 elements"),
        (tensor("0", "f4", 2**40, (1,), (1,), view="zip"), "storage '0' has not the stated"),
        (tensor("9", "f4", 6, (6,), (1,), view="zip"), "no item named 'model/data/9'"),
        (name("torch", "Size") + b"(K\x01tR", "'int' object is not iterable"),
        (tensor("0", "f4", 6, (1,) * 33, (1,) * 33, view="zip"), "more than 32 axes"),
        (b"K\x05)R", "something is called that is no function"),
        (b"}}}ss", "a dictionary has a key that is neither text nor number"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(tmp_path, part, sentence):
    path = tmp_path / "w.pth"
    write_zip(path, dictionary({"a": part}), {"0": np.zeros(6, "<f4").tobytes()})
    assert sentence in refused(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    np.savez(tmp_path / "w.npz", a=np.array([{}], dtype=object))
    assert "(NumPy's .npz and other archives are not read)" in refused(tmp_path / "w.npz")
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    assert "is a Python pickle of something else" in refused(path)
    path.write_bytes(pickle.dumps(MAGIC, 2) + pickle.dumps(7, 2))
    assert "unknown protocol" in refused(path)
    path.write_bytes(b"")
    refused(path)
    write_zip(path, HEAD + b"].", {})
    assert "holds no dictionary of tensors" in refused(path)
    write_zip(path, dictionary({}), {}, byteorder=b"big")
    assert "big-endian" in refused(path)
    write_stream(path, dictionary({}), {}, little=False)
    assert "big-endian" in refused(path)
    write_zip(path, dictionary({}), {}, compression=zipfile.ZIP_DEFLATED)
    assert "record 'byteorder' is compressed" in refused(path)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_torch(tmp_path / "none.pth")


# ------------------------------------------------------------------------------- small files that ask for a lot


def doubled(value, times=40):
    """Return instructions for a tuple of two tuples of two ...: 2 ** `times` values in a few bytes, memo 9."""
    return value + b"q\x09h\x09\x86" * times


HUGE = doubled(text("x"))
HOSTILE = {
    "module": HEAD + HUGE + text("x") + b"\x93.",
    "attribute": HEAD + text("torch") + HUGE + b"\x93.",
    "kind of persistent id": HEAD + b"(" + HUGE + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x01tQ.",
    "key of a storage": HEAD
    + b"(" + text("storage") + name("torch", "FloatStorage") + HUGE + text("cpu") + b"K\x01tQ.",
    "length of a storage": HEAD
    + b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + HUGE + b"tQ.",
    "long name": HEAD + b"}" + text("x" * 201) + ONE + b"s.",
    "key of a dictionary": HEAD + b"}" + HUGE + ONE + b"s.",
    "sizes": HEAD + b"}" + text("a") + FUNCTION + b"(" + ONE[len(FUNCTION) + 1 :].replace(b"(J\x01\0\0\0t", HUGE, 1)
    + b"s.",
}  # fmt: skip


@pytest.mark.parametrize("where", HOSTILE)
def test_what_is_no_name_is_never_written_out(tmp_path, where):
    path = tmp_path / "w.pth"
    write_zip(path, HOSTILE[where], {"0": np.zeros(1, "<f4").tobytes()})
    assert path.stat().st_size < 2000
    assert len(refused(path)) < 500


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_names_cannot_steer_a_terminal(tmp_path, form):
    path = tmp_path / "w.pth"
    program = HEAD + text("os\x1b[2J\n") + text("system") + b"\x93."
    (write_zip if form == "zip" else write_stream)(path, program, {})
    assert r"asks for 'os\x1b[2J\n.system', which" in refused(path)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_many_tensors_of_one_storage_are_refused(tmp_path, form):
    path, view = tmp_path / "w.pth", "zip" if form == "zip" else None
    for count in (4, 5):
        items = {str(i): tensor("0", "f4", 8, (8,), (1,), view=view) for i in range(count)}
        (write_zip if form == "zip" else write_stream)(
            path, dictionary(items), {"0": np.arange(8, dtype="<f4").tobytes()}
        )
        if count == 4:
            assert len(read_torch(path)) == 4  # tied weights
    assert "its tensors have more than 4 times as many elements as its storages" in refused(path)


def test_functions_given_the_same_list_again_and_again_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    size = name("torch", "Size")
    program = HEAD + b"](" + b"K\x01" * 2000 + b"eq\x09" + (size + b"h\x09\x85R") * 600 + b"."
    write_zip(path, program, {})
    assert "its functions are given more than 1000000 parts" in refused(path)


def test_records_that_overlap_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    items = {str(i): tensor(str(i), "f4", 1000, (1000,), (1,), view="zip") for i in range(10)}
    write_zip(path, dictionary(items), {"0": np.zeros(1000, "<f4").tobytes()})
    with zipfile.ZipFile(path, "a") as archive:
        whole = archive.getinfo("model/data/0")
        for i in range(1, 10):
            entry = zipfile.ZipInfo(f"model/data/{i}")
            entry.header_offset, entry.file_size, entry.compress_size = 0, whole.file_size, whole.compress_size
            entry.header_offset, entry.CRC = whole.header_offset, whole.CRC
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True
    refused(path)  # newer Pythons notice themselves, by another sentence


# ---------------------------------------------------------------------------------- what trainings wrap around tensors


def nested(**entries):
    return b"}" + b"".join(text(key) + value + b"s" for key, value in entries.items())


NUMPY_SCALAR = pickle.dumps(np.float64(0.5), 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")
OPTIMIZER = nested(state=nested(**{"0": nested(exp_avg=ONE)}))


@pytest.mark.parametrize(
    "entries",
    [
        {"epoch": b"K\x03", "state_dict": nested(a=ONE)},
        {"state_dict": nested(a=ONE), "ema": nested(b=ONE)},
        {"ema": nested(b=ONE), "model": nested(a=ONE), "optimizer": OPTIMIZER},
        {"model_state_dict": nested(a=ONE), "best": NUMPY_SCALAR},
        {"student": nested(a=ONE), "optimizer": OPTIMIZER},
        {"trainer": nested(weights=nested(a=ONE))},
        {"a": ONE, "best": NUMPY_SCALAR},
    ],
)
def test_the_weights_inside_a_checkpoint_are_read(tmp_path, entries):
    path = tmp_path / "w.pth"
    write_zip(path, HEAD + nested(**entries) + b".", {"0": np.array([2.5], "<f4").tobytes()})
    assert {key: value.tolist() for key, value in read_torch(path).items()} == {"a": [2.5]}


def test_a_file_of_several_networks_says_where_they_are(tmp_path):
    path = tmp_path / "w.pth"
    write_zip(path, HEAD + nested(teacher=nested(a=ONE), student=nested(a=ONE)) + b".", {"0": bytes(4)})
    assert "its tensors are in ['teacher'], ['student'] and none of these is a usual place" in refused(path)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_tensor_by_itself_is_no_network_but_is_read_where_it_is_wanted(tmp_path, form):
    path = tmp_path / "a.pt"
    torch_format.save_alone(path, np.arange(6, dtype="<i4").reshape(2, 3), "i4", form)
    with pytest.raises(CheckpointError, match="it holds no dictionary of tensors"):
        read_torch(path)
    found = read_tensors(path)
    assert list(found) == [""]
    assert found[""].dtype == np.int32
    np.testing.assert_array_equal(found[""], [[0, 1, 2], [3, 4, 5]])


def test_tensors_keep_the_types_they_are_stored_in(tmp_path):
    path = tmp_path / "a.pt"
    for kind, dtype in (("f8", "<f8"), ("f2", "<f2"), ("i8", "<i8"), ("BFloat16Storage", "<u2")):
        torch_format.save_alone(path, np.full(3, 1, dtype), kind)
        assert read_tensors(path)[""].dtype == (np.float32 if kind.startswith("B") else np.dtype(dtype))
    torch_format.save_alone(path, np.zeros((0, 3), "<f8"), "f8")
    assert read_tensors(path)[""].shape == (0, 3)
