"""Tests of cbst_mx.data.street_scenes: content, appearance shift, on-disk formats and refusals."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.street_scenes import LOOKS, Shift, appearance, looks, render_scene, write_demo_data, writing
from cbst_mx.errors import CBSTError, ConfigError, RunError
from cbst_mx.label_space import CITYSCAPES_19

NAMES = CITYSCAPES_19.names
SMALL = (64, 160)
COUNTS = {"source_count": 3, "source_val_count": 1, "target_count": 4, "target_val_count": 2}
EASY = ("road", "building", "vegetation", "car", "person")
HARD = tuple(name for name in NAMES if LOOKS[name].difficulty >= 0.6)


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    """Label maps of 120 scenes per domain, uint8 (120, 64, 160)."""
    return {
        domain: np.stack([render_scene(3, index, domain=domain, size=SMALL)[1] for index in range(120)])
        for domain in ("source", "target")
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    write_demo_data(out, size=(40, 72), seed=5, shift=Shift(), **COUNTS)
    return out


def test_scene_has_the_documented_shapes_and_types() -> None:
    image, label = render_scene(0, 0, domain="target", size=SMALL)
    assert image.shape == (64, 160, 3)
    assert image.dtype == np.uint8
    assert label.shape == (64, 160)
    assert label.dtype == np.uint8
    assert label.max() < 19
    assert image.std() > 20  # not a flat picture


@pytest.mark.parametrize("domain", ["source", "target"])
def test_equal_seed_and_index_give_equal_scenes(domain: str) -> None:
    first, again = (render_scene(2, 7, domain=domain, size=SMALL) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    for seed, index in ((2, 8), (3, 7)):
        image, label = render_scene(seed, index, domain=domain, size=SMALL)
        assert not np.array_equal(label, first[1])
        assert not np.array_equal(image, first[0])


def test_domains_have_different_streets() -> None:
    source, target = (render_scene(2, 7, domain=domain, size=SMALL)[1] for domain in ("source", "target"))
    assert not np.array_equal(source, target)


@pytest.mark.parametrize("shift", [Shift(0.0), Shift(2.0), Shift(1.0, seed=9)])
def test_shift_changes_the_target_image_only(shift: Shift) -> None:
    target, moved = (render_scene(1, 4, domain="target", size=SMALL, shift=s) for s in (Shift(), shift))
    assert np.array_equal(target[1], moved[1])
    assert np.abs(target[0].astype(int) - moved[0]).mean() > 2
    source, same = (render_scene(1, 4, domain="source", size=SMALL, shift=s) for s in (Shift(), shift))
    assert np.array_equal(source[0], same[0])
    assert np.array_equal(source[1], same[1])


def class_colours(domain: str, shift: Shift, count: int = 40) -> np.ndarray:
    """Return the mean RGB of every class over `count` scenes, float64 (19, 3)."""
    total, pixels = np.zeros((19, 3)), np.zeros(19)
    for index in range(count):
        image, label = render_scene(6, index, domain=domain, size=SMALL, shift=shift)
        for channel in range(3):
            total[:, channel] += np.bincount(label.ravel(), image[..., channel].ravel(), minlength=19)
        pixels += np.bincount(label.ravel(), minlength=19)
    assert pixels.min() > 0
    return total / pixels[:, None]


def test_hard_classes_move_further_than_easy_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # The global changes (haze, cast, gamma) move every class; without them the class-dependent part is left.
    monkeypatch.setattr(appearance, "TARGET_HAZE_DENSITY", 0.0)
    monkeypatch.setattr(appearance, "TARGET_CAST", (1.0, 1.0, 1.0))
    monkeypatch.setattr(appearance, "TARGET_GAMMA", 1.0)
    moved = np.linalg.norm(class_colours("target", Shift(1.0)) - class_colours("target", Shift(0.0)), axis=1)
    easy = np.mean([moved[NAMES.index(name)] for name in EASY])
    hard = np.mean([moved[NAMES.index(name)] for name in HARD])
    assert hard > 2 * easy
    assert easy > 1  # easy classes move too


def test_strength_zero_has_the_source_appearance() -> None:
    # Class means differ by instance colours and by content only. Rare classes have few instances, so common ones are
    # compared: at strength 1 they differ by more than 15 grey levels on average, by chance alone by about 3.
    common = [NAMES.index(name) for name in ("road", "sidewalk", "building", "vegetation", "terrain", "sky")]
    source = class_colours("source", Shift())[common]
    unmoved = np.linalg.norm(class_colours("target", Shift(0.0))[common] - source, axis=1).mean()
    moved = np.linalg.norm(class_colours("target", Shift(1.0))[common] - source, axis=1).mean()
    assert unmoved < 8
    assert moved > 15


@pytest.mark.parametrize("domain", ["source", "target"])
def test_every_class_appears_and_rare_ones_are_rare(labels: dict[str, np.ndarray], domain: str) -> None:
    maps = labels[domain]
    shares = np.bincount(maps.ravel(), minlength=19) / maps.size
    present = np.array([[np.any(label == c) for c in range(19)] for label in maps]).mean(0)
    assert shares[NAMES.index("road")] > 0.20
    assert shares[NAMES.index("building")] > 0.15
    for name in ("rider", "bicycle", "motorcycle", "train", "traffic light", "traffic sign", "bus", "truck"):
        c = NAMES.index(name)
        assert 0 < shares[c] < 0.01, name
        assert 0.05 < present[c] < 0.7, name
    assert present.min() > 0.05


def test_class_frequencies_differ_between_the_domains(labels: dict[str, np.ndarray]) -> None:
    source, target = (np.bincount(labels[domain].ravel(), minlength=19) for domain in ("source", "target"))
    for name in ("bicycle", "person", "vegetation"):
        assert target[NAMES.index(name)] > source[NAMES.index(name)], name
    assert target[NAMES.index("truck")] < source[NAMES.index("truck")]


@pytest.mark.parametrize("domain", ["source", "target"])
def test_road_is_low_and_sky_is_high(labels: dict[str, np.ndarray], domain: str) -> None:
    maps = labels[domain]
    upper, lower = maps[:, :32], maps[:, 32:]
    road, sky = NAMES.index("road"), NAMES.index("sky")
    assert (lower == road).sum() > 0.95 * (maps == road).sum()
    assert (upper == sky).sum() > 0.95 * (maps == sky).sum()
    # Pavements lie at the sides: in the bottom rows they hardly ever reach the middle fifth of the columns.
    sidewalk = maps[:, 48:] == NAMES.index("sidewalk")
    assert sidewalk[:, :, 64:96].mean() < 0.2 * sidewalk.mean()


@pytest.mark.parametrize("domain", ["source", "target"])
def test_places_tell_classes_apart(labels: dict[str, np.ndarray], domain: str) -> None:
    # What a spatial prior can use: buses come on the right and lorries on the left.
    maps = labels[domain]
    bus, truck = (np.median(np.nonzero(maps == NAMES.index(name))[2]) for name in ("bus", "truck"))
    assert bus > truck + 15
    # Cars stand at all distances: their pixels reach from near the horizon (row 27 of 64) to beside the camera.
    low, high = np.percentile(np.nonzero(maps == NAMES.index("car"))[1], (10, 90))
    assert low < 35
    assert high > 50


def test_thin_objects_keep_a_visible_width(labels: dict[str, np.ndarray]) -> None:
    # At 64 rows a bar is at least 2 pixels wide, so most pole pixels have a pole pixel beside them.
    pole = labels["source"] == NAMES.index("pole")
    beside = np.zeros_like(pole)
    beside[..., 1:] |= pole[..., :-1]
    beside[..., :-1] |= pole[..., 1:]
    assert beside[pole].mean() > 0.8


@pytest.mark.parametrize("size", [(97, 211), (32, 64), (65, 64), (40, 400), (200, 64)])
@pytest.mark.parametrize("domain", ["source", "target"])
def test_any_size_from_the_smallest_on(size: tuple[int, int], domain: str) -> None:
    image, label = render_scene(0, 3, domain=domain, size=size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert NAMES.index("road") in label


def test_layout_scales_with_the_size() -> None:
    small, large = (render_scene(4, 11, domain="source", size=size)[1] for size in ((64, 160), (128, 320)))
    # Twice the size shows the same street: only pixels at the outlines may differ.
    assert (small == cv2.resize(large, (160, 64), interpolation=cv2.INTER_NEAREST)).mean() > 0.93


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_written_names_are_those_of_gta5_and_cityscapes(written: Path) -> None:
    expected = [f"gta5/{kind}/{i:05d}.png" for kind in ("images", "labels") for i in (1, 2, 3)]
    expected += ["gta5_val/images/00001.png", "gta5_val/labels/00001.png"]
    for split, stems in (
        ("train", ["varnholt_000000", "grelau_000000", "ostermark_000000", "varnholt_000001"]),
        ("val", ["kesselin_000000", "tiefenroda_000000"]),
    ):
        for stem in stems:
            city = stem.split("_")[0]
            expected.append(f"cityscapes/leftImg8bit/{split}/{city}/{stem}_000019_leftImg8bit.png")
            expected += [
                f"cityscapes/gtFine/{split}/{city}/{stem}_000019_gtFine_{kind}.png"
                for kind in ("labelIds", "labelTrainIds")
            ]
    assert files(written) == sorted(expected)


def test_written_source_is_as_gta5(written: Path) -> None:
    image, label = render_scene(5, 1, domain="source", size=(40, 72))
    with Image.open(written / "gta5/images/00002.png") as picture:
        assert picture.mode == "RGB"
        assert picture.size == (72, 40)
        assert np.array_equal(np.asarray(picture), image)
    with Image.open(written / "gta5/labels/00002.png") as picture:
        assert picture.mode == "P"
        ids = np.asarray(picture)
        shown = np.asarray(picture.convert("RGB"))
    assert ids[label == NAMES.index("road")].min() == 7  # Cityscapes label ids, not trainIds
    assert np.array_equal(CITYSCAPES_19.encode(ids, "cityscapes", "00002.png"), label)
    assert np.array_equal(shown, np.array(CITYSCAPES_19.palette, np.uint8)[label])


def test_written_target_is_as_cityscapes(written: Path) -> None:
    image, label = render_scene(5, 3, domain="target", size=(40, 72))
    stem = "train/varnholt/varnholt_000001_000019"
    with Image.open(written / f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png") as picture:
        assert np.array_equal(np.asarray(picture), image)
    with Image.open(written / f"cityscapes/gtFine/{stem}_gtFine_labelIds.png") as picture:
        assert picture.mode == "L"
        assert np.array_equal(CITYSCAPES_19.encode(np.asarray(picture), "cityscapes", stem), label)
    with Image.open(written / f"cityscapes/gtFine/{stem}_gtFine_labelTrainIds.png") as picture:
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), label)


def test_held_out_scenes_are_new_and_independent_of_the_counts(written: Path, tmp_path: Path) -> None:
    write_demo_data(
        tmp_path / "few",
        source_count=0,
        source_val_count=1,
        target_count=0,
        target_val_count=1,
        size=(40, 72),
        seed=5,
        shift=Shift(),
    )
    name = "gta5_val/images/00001.png"
    assert (tmp_path / "few" / name).read_bytes() == (written / name).read_bytes()
    assert (written / name).read_bytes() != (written / "gta5/images/00001.png").read_bytes()
    assert files(tmp_path / "few/gta5") == []


def test_progress_counts_every_scene_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    calls: list[tuple[int, int]] = []
    write_demo_data(
        out, size=(32, 64), seed=0, shift=Shift(), progress=lambda done, total: calls.append((done, total)), **COUNTS
    )
    assert calls == [(done, 10) for done in range(1, 11)]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="must be a new or empty folder, but it already holds something"):
        write_demo_data(tmp_path, size=(32, 64), seed=0, shift=Shift(), **COUNTS)
    assert files(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(writing, "_write_cityscapes", fail)
    expected, sentence = (
        (RunError, "no space left on the disk") if isinstance(error, OSError) else (KeyboardInterrupt, None)
    )
    with pytest.raises(expected, match=sentence):
        write_demo_data(tmp_path / "data", size=(32, 64), seed=0, shift=Shift(), **COUNTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": (31, 64)}, r"size must be \(height, width\) of at least 32 x 64 pixels, got 31 x 64"),
        ({"size": (32, 63)}, r"at least 32 x 64 pixels, got 32 x 63"),
        ({"target_count": -1}, "target_count must be at least 0, got -1"),
        ({"seed": -2}, "seed must be at least 0, got -2"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    arguments: dict[str, object] = {"size": (32, 64), "seed": 0, "shift": Shift(), **COUNTS}
    with pytest.raises(ConfigError, match=sentence):
        write_demo_data(tmp_path / "data", **{**arguments, **change})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_render_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="domain must be one of source, target, got 'night'"):
        render_scene(0, 0, domain="night", size=SMALL)
    with pytest.raises(ConfigError, match="index must be at least 0, got -1"):
        render_scene(0, -1, domain="source", size=SMALL)
    with pytest.raises(ConfigError, match="size must be"):
        render_scene(0, 0, domain="source", size=(16, 16))
    assert issubclass(ConfigError, CBSTError)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_bad_shift_strength_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="shift strength must be a finite number of at least 0"):
        Shift(strength)


def test_bad_shift_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="shift seed must be at least 0, got -1"):
        Shift(seed=-1)


def test_every_class_has_a_look_that_can_be_shifted() -> None:
    assert tuple(LOOKS) == NAMES
    for look in LOOKS.values():
        assert 0 <= look.difficulty <= 1
        assert not isinstance(look.drifts_to, str) or look.drifts_to in NAMES
    assert all(LOOKS[name].difficulty <= 0.35 for name in EASY)


def test_looks_are_compared_without_error() -> None:
    one, other = looks.shifted_looks(Shift()), looks.shifted_looks(Shift(0.3))
    assert one == one
    assert one != other
