"""Pictures for prediction: found in folders of any depth, told what was left out, turned as their marks say."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from cbst_mx.cli import main
from cbst_mx.data import datasets
from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.photographs import ReadOnce, find_photographs, upright
from cbst_mx.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)


def write(path, turn=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(RGB).save(path, exif=exif)


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_as_viewers_show_them(tmp_path, turn):
    path = tmp_path / "x.png"
    write(path, turn)
    np.testing.assert_array_equal(ImageSet(["x"], [path]).image(0), RGB)  # data sets: as stored
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upright(RGB, turn), expected)
    images, _ = find_photographs([path])
    np.testing.assert_array_equal(images.image(0), expected)
    again = pickle.loads(pickle.dumps(images.subset([0])))
    assert again.turns == (turn,)
    np.testing.assert_array_equal(again.image(0), expected)
    assert upright(RGB, turn).flags.c_contiguous


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "tif", "webp"])
def test_marks_of_every_format_are_read(tmp_path, turn, ending):
    path = tmp_path / f"x.{ending}"
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(RGB).save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    images, _ = find_photographs([path])
    with Image.open(path) as image:
        # Pillow turns the pixels of TIFFs as it loads them
        expected = np.asarray((image if ending == "tif" else ImageOps.exif_transpose(image)).convert("RGB"))
    assert images.turns == (turn,)
    np.testing.assert_array_equal(images.image(0), expected)


def test_folders_are_searched_and_what_is_left_out_is_told(tmp_path):
    root = tmp_path / "photos"
    for name in ("b.PNG", "a.jpg", "day/c.tif", "day/two/d.bmp"):
        write(root / name)
    (root / "._a.jpg").write_bytes(bytes(50))  # a Mac's
    (root / "notes.txt").write_text("")
    (root / "day" / "film.mp4").write_bytes(b"")
    write(tmp_path / "elsewhere" / "e.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "day" / "loop").symlink_to(root)
    images, left_out = find_photographs([root])
    assert sorted(images.names) == ["a", "b", "c", "d", "e"]
    assert left_out == (
        "4 left out: 1 hidden (._a.jpg), 1 linked a second time (loop), 2 of another kind (film.mp4, notes.txt)"
    )
    (root / "odd.ending").write_bytes((root / "a.jpg").read_bytes())  # named itself: taken whatever it is called
    assert find_photographs([root / "odd.ending"])[0].names == ("odd",)


def test_what_cannot_be_found_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="image .*none.png does not exist"):
        find_photographs([tmp_path / "none.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"folder .*empty holds no image: files that end in \.png, \.jpg"):
        find_photographs([tmp_path / "empty"])
    for name in ("day/a.png", "a.png", "day__a.png"):
        write(tmp_path / name)
    with pytest.raises(DataError, match="image names must be unique, got 'day__a'"):
        find_photographs([tmp_path])


def test_predict_turns_and_says_so(tmp_path, monkeypatch):
    reads = []
    real = datasets.read_rgb
    monkeypatch.setattr(datasets, "read_rgb", lambda path: reads.append(path.name) or real(path))
    from cbst_mx.label_space import CITYSCAPES_19
    from cbst_mx.networks.build import build_network
    from cbst_mx.networks.parameters import save_parameters
    from cbst_mx.networks.spec import NetworkSpec
    from symbols.backend import mx

    spec = NetworkSpec("fcn8s", 19, {"width": 0.03125})
    save_parameters(tmp_path / "p.params", build_network(spec, mx.cpu(), seed=0), spec, CITYSCAPES_19)
    write(tmp_path / "in" / "side.jpg", 6)
    write(tmp_path / "in" / "up.png")
    (tmp_path / "in" / ".DS_Store").write_bytes(b"")
    arguments = ["predict", "--parameters", tmp_path / "p.params", tmp_path / "in", "--out", tmp_path / "out"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "1 left out: 1 hidden (.DS_Store)\n" in result.output
    assert "turned upright as their EXIF marks say: 1 of 2 images" in result.output
    for name, size in (("side", (24, 40)), ("up", (40, 24))):
        for kind in ("label", "overlay"):
            with Image.open(tmp_path / "out" / f"{name}_{kind}.png") as image:
                assert image.size == size
    assert reads == ["side.jpg", "up.png"]  # once each


def test_what_is_kept_for_one_use_is_read_once_and_forgotten(tmp_path):
    write(tmp_path / "a.png")
    once = ReadOnce(find_photographs([tmp_path])[0])
    first = once.image(0)
    (tmp_path / "a.png").unlink()
    assert once.take(0) is first
    with pytest.raises(DataError, match="does not exist"):
        once.take(0)
