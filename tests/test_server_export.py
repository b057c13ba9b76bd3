from __future__ import annotations

import io
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.image_files import write_label_png
from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.evaluation import server_export
from cbst_mx.evaluation.server_export import SPLITS, export, find_predictions, problems
from cbst_mx.label_space import CITYSCAPES_19, SYNTHIA_16
from tests.fuzz.harness import fuzz

SIZE = (1024, 2048)
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def stripes(num_classes=19):
    """Return trainIds with every class in it."""
    return np.broadcast_to(np.arange(SIZE[1], dtype=np.int64) % num_classes, SIZE).astype(np.uint8)


def png(values, mode="L"):
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    elif mode != image.mode:
        image = image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


ROAD = png(np.full(SIZE, 7, np.uint8))


def archive_of(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def frames(split):
    return [
        f"{city}_{index:06d}_000019" for city, count in server_export.SPLITS[split].items() for index in range(count)
    ]


# -------------------------------------------------------------------------------------------------------------- export


def test_an_archive_has_the_servers_names_and_label_ids(tmp_path):
    folder = tmp_path / "predictions"
    for name in ("bonn_000001_000019_leftImg8bit_label.png", "berlin/berlin_000000_000019.png"):
        write_label_png(folder / name, stripes(), CITYSCAPES_19)
    # what `predict` writes beside the labels
    (folder / "bonn_000001_000019_leftImg8bit_overlay.png").write_bytes(b"a picture")
    seen = []
    found = find_predictions(folder)
    export(
        found, tmp_path / "a.zip", label_space=CITYSCAPES_19, progress=lambda done, total: seen.append((done, total))
    )
    assert list(found) == ["berlin_000000_000019", "bonn_000001_000019"]
    assert seen == [(1, 2), (2, 2)]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["berlin_000000_000019.png", "bonn_000001_000019.png"]
        for name in archive.namelist():
            with Image.open(io.BytesIO(archive.read(name))) as image:
                assert (image.mode, image.size) == ("L", (2048, 1024))
                ids = np.array(image)
            np.testing.assert_array_equal(ids, np.array(EVALUATED, np.uint8)[stripes()])
    again = tmp_path / "b.zip"
    export(found, again, label_space=CITYSCAPES_19)
    assert again.read_bytes() == (tmp_path / "a.zip").read_bytes()
    # nothing is wrong with these images, only most of them are missing
    assert problems(again) == [
        "2 images, test has 1525",
        "1 image of berlin, test has 544",
        "0 images of bielefeld, test has 181",
        "1 image of bonn, test has 46",
        "0 images of leverkusen, test has 58",
        "0 images of mainz, test has 298",
        "0 images of munich, test has 398",
    ]


def test_train_ids_of_other_label_spaces_become_the_same_label_ids(tmp_path):
    write_label_png(tmp_path / "bonn_000001_000019.png", stripes(16), SYNTHIA_16)
    export(find_predictions(tmp_path), tmp_path / "a.zip", label_space=SYNTHIA_16)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        ids = np.array(Image.open(io.BytesIO(archive.read("bonn_000001_000019.png"))))
    assert sorted(set(ids[0])) == [id_ for id_ in EVALUATED if id_ not in (22, 27, 31)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros((512, 1024), np.uint8), r"bonn_000001_000019.png must be 1024 x 2048 pixels, got 512 x 1024$"),
        (np.full(SIZE, 255, np.uint8), r"must hold a trainId from 0 to 18 at every pixel, got 255 \(no class\)$"),
        (np.full(SIZE, 33, np.uint8), r"must hold a trainId from 0 to 18 at every pixel, got 33$"),
    ],
)
def test_predictions_that_are_none_are_refused_and_leave_nothing(tmp_path, values, sentence):
    (tmp_path / "bonn_000001_000019.png").write_bytes(png(values))
    with pytest.raises(DataError, match=sentence):
        export(find_predictions(tmp_path), tmp_path / "out" / "a.zip", label_space=CITYSCAPES_19)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_archive_must_be_a_writable_zip(tmp_path):
    (tmp_path / "bonn_000001_000019.png").write_bytes(ROAD)
    with pytest.raises(ConfigError, match=r"^the archive must be a .zip file, got .*a.tar$"):
        export(find_predictions(tmp_path), tmp_path / "a.tar", label_space=CITYSCAPES_19)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"^cannot write "):
        export(find_predictions(tmp_path), tmp_path / "file" / "a.zip", label_space=CITYSCAPES_19)


def test_folders_that_do_not_hold_predictions_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no prediction: expected <city>_<6 digits>_<6 digits>\*.png$"):
        find_predictions(tmp_path)
    for name in ("bonn_000001_000019.png", "bonn_000001_000019_leftImg8bit.png"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"are predictions of one image: leave one of them$"):
        find_predictions(tmp_path)
    (tmp_path / "bonn_000001_0000190.png").touch()
    with pytest.raises(DataError, match=r"bonn_000001_0000190.png must be named <city>_<6 digits>_<6 digits>\*.png"):
        find_predictions(tmp_path)


def test_predictions_are_found_behind_links_and_hidden_files_are_none(tmp_path):
    folder, disk = tmp_path / "predictions", tmp_path / "disk"
    folder.mkdir()
    disk.mkdir()
    first, second = folder / "bonn_000001_000019.PNG", disk / "bonn_000002_000019.png"
    for path in (first, second, folder / "._bonn_000001_000019.png"):
        path.touch()
    (folder / "more").symlink_to(disk)
    (folder / "circle").symlink_to(folder)
    assert list(find_predictions(folder)) == ["bonn_000001_000019", "bonn_000002_000019"]


# ---------------------------------------------------------------------------------------------------------- validation


def test_cities_add_up():
    assert {split: sum(cities.values()) for split, cities in SPLITS.items()} == {"test": 1525, "val": 500}


def test_a_whole_archive_has_no_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(server_export, "SPLITS", {"val": {"frankfurt": 20, "lindau": 5}})
    suffixes = (".png", "_leftImg8bit.png", "_pred.png")
    names = [f"results/{frame}{suffixes[index % 3]}" for index, frame in enumerate(frames("val"))]
    seen = []
    path = archive_of(tmp_path / "a.zip", [(name, ROAD) for name in names])
    assert problems(path, split="val", progress=lambda done, total: seen.append(total)) == []
    assert seen == [25] * 25


def test_the_data_sets_own_program_finds_the_files(tmp_path):
    scripts = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="cityscapesscripts is not installed (extra dev)",
    )
    write_label_png(tmp_path / "bonn_000001_000019_leftImg8bit_label.png", stripes(), CITYSCAPES_19)
    export(find_predictions(tmp_path), tmp_path / "a.zip", label_space=CITYSCAPES_19)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "results")
    search = types.SimpleNamespace(predictionPath=str(tmp_path / "results"), predictionWalk=None)
    found = scripts.getPrediction(search, str(tmp_path / "bonn_000001_000019_gtFine_labelIds.png"))
    assert found == str(tmp_path / "results" / "bonn_000001_000019.png")


def test_every_problem_is_a_line(tmp_path):
    every = np.array(EVALUATED, np.uint8)[stripes()]
    train_ids = stripes()
    ignored = np.where(train_ids == 3, 0, every).astype(np.uint8)
    damaged = bytearray(ROAD)
    damaged[60] ^= 255
    members = [
        ("bonn_000000_000019.png", png(every)),
        ("bonn_000001_000019.png", png(train_ids)),
        ("bonn_000002_000019.png", png(ignored)),
        ("bonn_000003_000019.png", png(every, "P")),
        ("bonn_000004_000019.png", png(every, "RGB")),
        ("bonn_000005_000019.png", png(every.astype(np.uint16), "I;16")),
        ("bonn_000006_000019.png", png(every[::2, ::2].copy())),
        ("bonn_000007_000019.png", bytes(damaged)),
        ("bonn_000008_000019.png", b"GIF89a"),
        ("bonn_000009_000019.png", ROAD[:200]),
        ("bonn_000000_000019_b.png", ROAD),
        ("lindau_000000_000019.png", ROAD),
        ("readme.txt", b"hello"),
        ("bonn_1_19.png", ROAD),
    ]
    found = problems(archive_of(tmp_path / "a.zip", members))
    lines = dict(line.split(": ", 1) for line in found if ": " in line)
    assert lines.pop("bonn_000007_000019.png").startswith("damaged (")
    assert lines.pop("bonn_000009_000019.png").startswith("damaged (")
    assert lines == {
        "bonn_000001_000019.png": (
            "has values that are no evaluated label id: 0, 1, 2, 3, 4, 5, 6, 9 and more; are these trainIds?"
        ),
        "bonn_000002_000019.png": "has values that are no evaluated label id: 0",
        "bonn_000003_000019.png": "must be grey of 8 bits, is palette of 8 bits",
        "bonn_000004_000019.png": "must be grey of 8 bits, is colour of 8 bits",
        "bonn_000005_000019.png": "must be grey of 8 bits, is grey of 16 bits",
        "bonn_000006_000019.png": "must be 1024 x 2048 pixels, is 512 x 1024",
        "bonn_000008_000019.png": "not a PNG",
        "readme.txt": "not named <city>_<6 digits>_<6 digits>*.png",
        "bonn_1_19.png": "not named <city>_<6 digits>_<6 digits>*.png",
        "bonn_000000_000019": "2 files, bonn_000000_000019.png, bonn_000000_000019_b.png",
    }
    counts = [line for line in found if ": " not in line]
    assert counts[0] == "11 images, test has 1525"
    assert "1 image of lindau, which is not in test" in counts
    assert "10 images of bonn, test has 46" in counts


def test_a_member_that_cannot_be_unpacked_is_a_line(tmp_path):
    path = archive_of(tmp_path / "a.zip", [("bonn_000000_000019.png", ROAD)])
    content = bytearray(path.read_bytes())
    content[len("bonn_000000_000019.png") + 30 + 100] ^= 255  # inside the stored PNG: the archive's checksum fails
    path.write_bytes(bytes(content))
    assert problems(path)[0].startswith("bonn_000000_000019.png: cannot be unpacked (")


def test_damaged_archives_are_lines_or_one_sentence(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bonn_000000_000019.png", png(np.random.default_rng(0).integers(0, 34, (64, 64), np.uint8)))
        archive.writestr("bonn_\x1b[31m.png", b"")
    whole = path.read_bytes()
    assert any(line.startswith(r"'bonn_\x1b[31m.png': not named") for line in problems(path))

    def read(content):
        path.write_bytes(content)
        problems(path)

    broken = bytearray(whole)
    broken[30 + len("bonn_000000_000019.png")] = 0x07  # a block of no kind
    read(bytes(broken))
    assert problems(path)[0].startswith("bonn_000000_000019.png: cannot be unpacked (Error -3 while decompressing data")
    fuzz(
        "archives for the server",
        read,
        [whole],
        [b"PK\x01\x02", b"PK\x05\x06", b"\x08\x00", b"\x0c\x00", b"\x0e\x00", b"\xff\xff\xff\xff"],
        count=200,
    )


def test_too_large_members_are_not_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bonn_000000_000019.png", b"\0" * (20 * 2**20))
    assert problems(path)[0] == "bonn_000000_000019.png: 20 MB, too large for an image of labels"


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.zip does not exist$"):
        problems(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"a.zip is no zip archive, or a damaged one$"):
        problems(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"cannot be read: "):
        problems(tmp_path)
    with pytest.raises(ConfigError, match=r"^split must be one of test, val, got 'train'$"):
        problems(tmp_path / "a.zip", split="train")
