"""Files of class maps: every form that is read, and one sentence for every other."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest

from cbst_mx.data.image_files import read_label
from cbst_mx.data.listing import all_images
from cbst_mx.errors import DataError
from cbst_mx.labelling import MapFolder, State, job, run
from cbst_mx.labelling.map_files import array_bytes, file_version, find_maps, read_header, read_map
from tests import torch_format
from tests.maps import random_maps, write_maps
from tests.test_labelling import call, contents, refused, succeed

MAP = random_maps(0, (13, 6, 8))


def write(path, array, name="probability"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npy":
        with open(path, "wb") as stream:  # np.save adds endings
            np.save(stream, array)
    elif path.suffix.lower() == ".npz":
        with open(path, "wb") as stream:
            np.savez_compressed(stream, **{name: array})
    else:
        torch_format.save(path, {name: array})
    return path


# ------------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("name", ["a.npy", "a.NPY", "a.npz", "a.NPZ", "a.pt", "a.PT"])
@pytest.mark.parametrize("leading", [False, True])
def test_every_form_gives_the_same_map(tmp_path, name, leading):
    path = write(tmp_path / name, MAP[None] if leading else MAP)
    assert read_header(path).shape == (13, 6, 8)
    for mapped in (False, True):
        found = read_map(path, mapped=mapped)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, MAP)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble"])
@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_every_float_type_becomes_one_the_pass_takes(tmp_path, dtype, ending):
    path = write(tmp_path / f"a{ending}", MAP.astype(dtype))
    found = read_map(path, mapped=True)
    half = dtype.endswith("f2")
    assert found.dtype == (np.float16 if half else np.float32)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, MAP.astype(np.float16) if half else MAP)
    assert read_header(path).item_bytes == np.dtype(dtype).itemsize + (4 if np.dtype(dtype).itemsize > 4 else 0)


def test_maps_in_fortran_order_are_read(tmp_path):
    np.testing.assert_array_equal(read_map(write(tmp_path / "a.npy", np.asfortranarray(MAP)), mapped=True), MAP)


def test_float32_at_full_size_stays_on_the_disk(tmp_path):
    for array in (MAP, MAP[None]):
        found = read_map(write(tmp_path / "a.npy", array), mapped=True)
        assert isinstance(found, np.memmap)
        assert found.mode == "r"


def test_labels_do_not_depend_on_the_form(tmp_path):
    maps = random_maps(1, (3, 13, 6, 8))
    given = {"policy": "class-balanced", "portion": 0.3}
    run(MapFolder.open(write_maps(tmp_path / "npy", maps)), tmp_path / "out", **given)
    expected = contents(tmp_path / "out")
    forms = {"f8.npy": maps.astype(np.float64), "four.npy": maps[:, None], "a.npz": maps, "a.pt": maps}
    for form, arrays in forms.items():
        folder = tmp_path / form
        for index, array in enumerate(arrays):
            write(folder / f"image-{index}{form[form.index('.') :]}", array)
        run(MapFolder.open(folder), tmp_path / f"out-{form}", workers=2, **given)
        assert contents(tmp_path / f"out-{form}") == expected


@pytest.mark.parametrize("ending", [".npz", ".pt"])
def test_a_key_names_the_array(tmp_path, ending):
    path = tmp_path / "maps" / f"a{ending}"
    path.parent.mkdir()
    arrays = {"image": np.zeros((3, 6, 8), np.float32), "softmax": MAP}
    torch_format.save(path, arrays) if ending == ".pt" else np.savez(path, **arrays)
    given = ("--probabilities", path.parent, "--portion", 0.3)
    assert "one array or one called 'probability', got image, softmax (--key names another)" in refused(
        *given, "--out", tmp_path / "no"
    ).replace("\n", " ")
    assert "must hold an array called 'x', got image, softmax" in refused(
        *given, "--key", "x", "--out", tmp_path / "no"
    ).replace("\n", " ")
    succeed(*given, "--key", "softmax", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "kc.json").read_text())["settings"]["key"] == "softmax"
    assert "belongs to another job (other settings" in refused(
        *given, "--key", "image", "--out", tmp_path / "out"
    ).replace("\n", " ")
    np.testing.assert_array_equal(MapFolder.open(path.parent, key="softmax").maps(0).stored, MAP)


# ----------------------------------------------------------------------------------------------------------- folders


def test_sub_folders_are_part_of_the_names_and_of_the_labels(tmp_path):
    maps = random_maps(2, (3, 13, 6, 8))
    names = ("day/0001", "night/0001", "x")
    for name, array in zip(names, maps):
        write(tmp_path / "maps" / f"{name}.npy", array)
    flat = write_maps(tmp_path / "flat", maps)  # the same order
    out = tmp_path / "out"
    succeed("--probabilities", tmp_path / "maps", "--portion", 0.3, "--out", out)
    succeed("--probabilities", flat, "--portion", 0.3, "--out", tmp_path / "flat-out")
    for index, name in enumerate(names):
        np.testing.assert_array_equal(
            read_label(out / "pseudo_labels" / f"{name}.png"),
            read_label(tmp_path / "flat-out" / "pseudo_labels" / f"image-{index}.png"),
        )
    assert (out / "kc.json").read_bytes() == (tmp_path / "flat-out" / "kc.json").read_bytes()
    assert State.load(out / "state.npz").counts.names == names


def test_shards_of_sub_folders_give_what_one_call_gives(tmp_path):
    for index, array in enumerate(random_maps(3, (5, 13, 6, 8))):
        write(tmp_path / "maps" / f"{'ab'[index % 2]}/{index}.npy", array)
    reading = ("--probabilities", tmp_path / "maps")
    succeed(*reading, "--portion", 0.3, "--out", tmp_path / "whole")
    for part in (1, 2):
        succeed("count", *reading, "--shard", f"{part}/2", "--out", tmp_path / f"{part}.npz")
    succeed("merge", tmp_path / "1.npz", tmp_path / "2.npz", "--out", tmp_path / "all.npz")
    succeed("select", "--state", tmp_path / "all.npz", *reading, "--portion", 0.3, "--out", tmp_path / "steps")
    assert contents(tmp_path / "steps") == contents(tmp_path / "whole")


def test_links_are_followed_and_loops_are_not(tmp_path):
    write(tmp_path / "elsewhere" / "b.npy", MAP)
    folder = tmp_path / "maps"
    write(folder / "a.npy", MAP)
    (folder / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    assert list(find_maps(folder)[0]) == ["a", "link/b"]
    (folder / "c.npy").symlink_to(tmp_path / "nowhere.npy")
    with pytest.raises(DataError, match=r"c\.npy does not exist"):
        MapFolder.open(folder)


def test_folders_are_walked_as_those_of_images_are(tmp_path):
    folder = tmp_path / "maps"
    for name in ("z/a.npy", "__MACOSX/b.npy", "@eaDir/c.npy", ".hidden/d.npy", "z/._a.npy", "Thumbs.db"):
        write(folder / name, MAP) if name.endswith("npy") else (folder / name).write_bytes(b"")
    (folder / "a").symlink_to(
        folder / "z", target_is_directory=True
    )  # a folder is called as it is, not by a link to it
    (folder / "z" / "back").symlink_to(folder, target_is_directory=True)
    assert find_maps(folder) == ({"z/a": folder / "z" / "a.npy"}, [])
    (folder / "z" / "a.npy").rename(folder / "z" / "a.png")
    assert [path.name for path in all_images(folder).files] == ["a.png"]


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "maps" / "x").mkdir(parents=True, mode=0)
    with pytest.raises(DataError, match="x cannot be read: Permission denied"):
        find_maps(tmp_path / "maps")


def test_what_is_left_out_is_said(tmp_path):
    folder = tmp_path / "maps"
    write(folder / "a.npy", MAP)
    write(folder / "._a.npy", MAP)
    write(folder / ".cache" / "b.npy", MAP)
    (folder / "notes.txt").write_text("x")
    succeed("--probabilities", folder, "--portion", 0.3, "--out", folder / "labels")
    maps, left_out = find_maps(folder)
    assert list(maps) == ["a"]
    assert left_out == ["labels/", "notes.txt"]
    output = succeed("--probabilities", folder, "--portion", 0.3, "--out", folder / "labels")
    assert "left out, as no maps: labels/, notes.txt" in output


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.npy", "a.npz"], "every image must have one map, got"),
        (["x/a.npy", "x/a.pt"], "every image must have one map, got"),
        (["a.npy", "a.png/b.npy"], r"must not have the name of a folder of maps, .*a\.png"),
        (["a\nb/c.npy"], r"must be text without control characters, got 'a\\nb/c.npy'"),
        (["a" * 252 + ".pt"], "must have at most 251 bytes without its ending"),
        ([], "holds no .npy, .npz or .pt file"),
    ],
)
def test_names_that_no_label_can_have_are_refused(tmp_path, names, sentence):
    for name in names:
        write(tmp_path / name, MAP)
    with pytest.raises(DataError, match=sentence):
        find_maps(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"a\.npy is not a readable .* of numbers: it is no ordinary file"):
        MapFolder.open(tmp_path)
    with pytest.raises(DataError, match=r"b\.npy does not exist"):
        file_version(tmp_path / "b.npy")


# ---------------------------------------------------------------------------------------------------------- refusals


def test_the_advice_for_whole_numbers_can_be_followed(tmp_path):
    numbers = np.round(255 * MAP).astype(np.uint8)
    numbers[:, :2] = 0
    path = write(tmp_path / "a.npy", numbers)
    with pytest.raises(DataError, match="whole numbers in their place are converted by") as caught:
        MapFolder.open(tmp_path)
    advice = str(caught.value).partition("converted by ")[2]
    exec(advice, {"np": np, "path": path, "m": np.load(path)})  # the sentence itself, from the program
    assert MapFolder.open(tmp_path).view(0).confidence[0][:2].max() == 0


def header(text, data=b""):
    text = text.encode("latin-1")
    return np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize("ending", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808, 4, 4)}\n"), "there are 0"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (19, 100000, 100000)}\n"), "760,000,000,000 bytes"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4, 4)}\n"), "states the shape"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1)}\n", b"\x80\x04N."), "Python objects"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 5000), "is not a readable"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1)" + " " * 60_000), "is not a readable"),
        (np.lib.format.magic(2, 0) + b"\xff\xff\xff\xff", "is not a readable"),
        (np.lib.format.magic(9, 9), "is not a readable"),
        (b"", "it is empty"),
        (b"\x80\x04N.", "it does not begin as a .npy file"),
    ],
)
def test_headers_that_promise_too_much_are_refused_before_memory_is_asked_for(tmp_path, content, sentence, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("probability.npy", content)
    for read in (read_header, read_map):
        with pytest.raises(DataError) as caught:
            read(path)
        message = str(caught.value)
        assert sentence in message
        assert message.startswith(f"{path} is not a readable .npy or .npz file of numbers: ")
        assert "\n" not in message
        assert "pickle" not in message


def test_torch_files_without_a_map_say_how_to_write_one(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"\x80\x02}.")
    with pytest.raises(
        DataError, match=r"a\.pt .*a map is read as torch.save\(map, path\) or torch.save\({'probability': map}, path\)"
    ):
        MapFolder.open(tmp_path)


@pytest.mark.parametrize("form", ["zip", "stream"])
@pytest.mark.parametrize(("kind", "dtype"), [("f4", "<f4"), ("f8", "<f8"), ("f2", "<f2")])
def test_a_tensor_by_itself_is_the_map(tmp_path, form, kind, dtype):
    path = tmp_path / "a.pt"
    for array in (MAP, MAP[None]):
        torch_format.save_alone(path, array.astype(dtype), kind, form)
        for key in (None, "softmax"):  # as in an .npy, there is no choice
            assert read_header(path, key).shape == MAP.shape
            found = read_map(path, key)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, MAP.astype(dtype).astype(np.float32))
    assert MapFolder.open(tmp_path).num_classes == len(MAP)


@pytest.mark.parametrize("kind", ["i8", "i4", "i2", "ByteStorage", "CharStorage", "BoolStorage"])
def test_whole_numbers_in_tensors_get_the_advice_of_those_in_arrays(tmp_path, kind):
    dtype = {"i8": "i8", "i4": "i4", "i2": "i2", "CharStorage": "i1"}.get(kind, "u1")
    path = tmp_path / "a.pt"
    array = np.ones((3, 4, 5), dtype)
    torch_format.save_alone(path, array, kind)
    torch_format.write_zip(
        tmp_path / "named.pt",
        torch_format.dictionary({"x": torch_format.tensor("0", kind, 60, (3, 4, 5), (20, 5, 1), view="zip")}),
        {"0": array.tobytes()},
    )
    for name in ("a.pt", "named.pt"):
        for read in (read_header, read_map):
            with pytest.raises(
                DataError, match=r"whole numbers in their place are converted by m = m\.float\(\); "
            ) as caught:
                read(tmp_path / name)
            assert f"must hold probabilities as float16, float32 or float64, got {array.dtype};" in str(caught.value)


def test_what_is_no_tensor_says_so(tmp_path):
    torch_format.write_zip(tmp_path / "a.pt", torch_format.HEAD + b"].", {})
    with pytest.raises(DataError, match=r"a\.pt is damaged or .*: it holds no dictionary of tensors; a map is read as"):
        read_map(tmp_path / "a.pt")


def test_the_bytes_of_an_array_are_those_while_it_becomes_float32(tmp_path):
    np.savez(tmp_path / "a.npz", f4=np.zeros((2, 3), np.float32), f8=np.zeros((2, 3)))
    assert array_bytes(tmp_path / "a.npz", "f4") == 24
    assert array_bytes(tmp_path / "a.npz", "f8") == 72
    with pytest.raises(DataError, match="is not a readable"):
        array_bytes(tmp_path / "a.npz", "none")


@pytest.mark.parametrize("step", ["_count_block", "_select_block"])
def test_too_little_memory_is_a_sentence(tmp_path, monkeypatch, step):
    folder = write_maps(tmp_path / "maps", random_maps(0, (2, 13, 6, 8)))
    what = "collect" if step == "_count_block" else "label"

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(job.selection, what, fail)
    output = call("--probabilities", folder, "--portion", 0.2, "--out", tmp_path / "out")
    assert output.exit_code == 1
    assert "needs more memory than there is" in output.output
