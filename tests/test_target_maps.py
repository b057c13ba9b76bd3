"""Looks at the target maps: wherever they are kept, sorted or counted, host or device, the pseudo-labels are equal."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import write_rgb_png
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cbst_mx.errors import ConfigError
from cbst_mx.networks.build import build_network
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.compact_maps import CompactMap
from cbst_mx.selftrain.interpolation import INTERPOLATIONS
from cbst_mx.selftrain.network_maps import predictions, probabilities, stride_probabilities
from cbst_mx.selftrain.selection import label_set
from cbst_mx.selftrain.target_maps import TargetMaps
from cbst_mx.selftrain.thresholds import Thresholds
from symbols.backend import mx

CLASSES = 4
SPECS = {
    "resnet38": NetworkSpec("resnet38", CLASSES, {"width": 1 / 64}),
    "fcn8s": NetworkSpec("fcn8s", CLASSES, {"width": 1 / 32, "batch_norm": "none", "upsampling": "learned"}),
}
SIZES = [(40, 64), (40, 64), (37, 61), (40, 64)]
LOOKS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "flip": True}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        blocks = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
        write_rgb_png(folder / f"{number}.png", blocks[: size[0], : size[1]].astype(np.uint8))
    return ImageSet([str(n) for n in range(len(SIZES))], [folder / f"{n}.png" for n in range(len(SIZES))])


def network_of(name):
    network = build_network(SPECS[name], mx.cpu(), seed=1)
    for parameter in network.collect_params().values():
        if "score" in parameter.name or "linear" in parameter.name:
            parameter.set_data(parameter.data() * 30)  # else every class is as likely as another
    return network


def make(images, tmp_path, name="resnet38", **options):
    options = {**LOOKS, **options}
    return TargetMaps(network_of(name), images, num_classes=CLASSES, folder=tmp_path / "maps", ctx=mx.cpu(), **options)


def labels_of(maps, policy="class-balanced", **options):
    statistics, labels = ImageStatistics(CLASSES), {}
    collector = maps.collector("paper", **options)
    found = label_set(maps, collector, policy=policy, portion=0.3, write=labels.__setitem__, statistics=statistics)
    return found.thresholds.values, statistics.total(), labels


@pytest.mark.parametrize("keep", ["memory", "recompute"])
def test_target_maps_are_of_drafts_as_predictions_are(images, tmp_path, keep):
    paths = [tmp_path / f"{name}.jpg" for name in images.names]
    for index, path in enumerate(paths):
        path.write_bytes(simplejpeg.encode_jpeg(images.image(index), quality=95))
    pictures, options = ImageSet(images.names, paths), {"resampling": "draft", "long_side": 30}
    found = list(predictions(network_of("fcn8s"), pictures, ctx=mx.cpu(), **LOOKS, **options))
    maps = make(pictures, tmp_path, "fcn8s", keep=keep, **options)
    for _ in range(2):
        seen = [view for _, view in maps]
        assert len(seen) == len(found)
        for view, (_, predicted) in zip(seen, found):
            assert view.confidence[1].shape == predicted.shape
            np.testing.assert_array_equal(view.confidence[1], predicted)


def assert_same(mine, theirs):
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_array_equal(mine[1], theirs[1])
    assert mine[2].keys() == theirs[2].keys()
    for name in theirs[2]:
        np.testing.assert_array_equal(mine[2][name], theirs[2][name])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_nothing_depends_on_where_maps_are_kept_or_how_thresholds_are_found(images, tmp_path, name, on_device):
    prior = np.random.default_rng(2).random((CLASSES, 5, 8)).astype(np.float32)
    options = {"name": name, "on_device": on_device, "prior": prior}
    reference = labels_of(make(images, tmp_path, keep="memory", **options))
    assert len(np.unique(np.concatenate([label.ravel() for label in reference[2].values()]))) > 2
    assert [label.shape for label in reference[2].values()] == SIZES
    for keep in ("disk", "recompute"):
        assert_same(labels_of(make(images, tmp_path, keep=keep, **options)), reference)
    assert_same(labels_of(make(images, tmp_path, keep="memory", **options), sorted_pixels=0), reference)


@pytest.mark.parametrize("room", [10**6, 40_000, 0])
def test_compact_maps_give_the_same_labels(images, tmp_path, room, monkeypatch):
    runs = []

    def compute(self, pair, original=TargetMaps._compute):
        runs.append(pair[0])
        return original(self, pair)

    monkeypatch.setattr(TargetMaps, "_compute", compute)
    reference = labels_of(make(images, tmp_path, "fcn8s", keep="memory"))
    for options in ({}, {"sorted_pixels": 0}):  # counted confidences take another pass
        maps = make(images, tmp_path, "fcn8s", keep="compact")
        runs.clear()
        maps._room = room  # of the four images some have to do without
        assert_same(labels_of(maps, **options), reference)
        kept = len(maps._kept)
        assert kept == len(SIZES) if room > 40_000 else kept == 0 if not room else 0 < kept < len(SIZES)
        assert len(runs) == len(SIZES) + (len(SIZES) - kept) * (2 if options else 1)


@pytest.mark.parametrize("value", [0.2, 0.0])
def test_thresholds_below_what_compact_maps_keep_get_the_whole_map(images, tmp_path, value):
    low = Thresholds("global", "paper", 0.3, np.full(CLASSES, value, np.float32), np.zeros(CLASSES, np.int64))
    low.values[1] = 0.9
    whole, compact = (make(images, tmp_path, "fcn8s", keep=keep) for keep in ("memory", "compact"))
    for maps in (whole, compact):
        list(maps)
    for (_, mine), (_, theirs) in zip(compact, whole):
        np.testing.assert_array_equal(mine.select([low])[0], theirs.select([low])[0])


def test_maps_of_unsure_pixels_are_not_made_compact():
    maps = np.full((4, 8, 9), 0.25, np.float32)
    compact = CompactMap.of(maps)
    np.testing.assert_array_equal(compact.whole(), maps)
    for wrong in (0.0, np.nan):
        maps[:, 3, 4] = wrong
        assert CompactMap.of(maps) is None


@pytest.mark.parametrize("long_side", [None, 100])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_host_and_device_maps_are_those_of_probabilities(images, tmp_path, long_side, interpolation):
    network = network_of("resnet38")
    options = {"long_side": long_side, "interpolation": interpolation}
    expected = [
        probabilities(network, [images.image(index)], ctx=mx.cpu(), **options, **LOOKS)[0]
        for index in range(len(SIZES))
    ]
    for on_device in (False, True):
        for probability, (_, view) in zip(expected, make(images, tmp_path, on_device=on_device, **options)):
            value, predicted = view.confidence
            np.testing.assert_array_equal(value, probability.max(axis=0).asnumpy())
            np.testing.assert_array_equal(predicted, probability.argmax(axis=0).asnumpy())
    found = dict(predictions(network, images, batch_size=1, ctx=mx.cpu(), **options, **LOOKS))
    for index, probability in enumerate(expected):
        np.testing.assert_array_equal(found[index], probability.argmax(axis=0).asnumpy())


def test_maps_on_disk_are_at_the_networks_stride_and_removed(images, tmp_path):
    maps = make(images, tmp_path, keep="disk")
    labels_of(maps)
    stored = sorted((tmp_path / "maps").glob("*.npy"))
    assert [np.load(path).shape for path in stored] == [(CLASSES, 5, 8)] * 4
    assert maps.bytes == 4 * CLASSES * 5 * 8 * 4
    maps.close()
    assert not (tmp_path / "maps").exists()


def test_auto_takes_memory_then_disk_but_never_full_size_maps_on_disk(images, tmp_path, monkeypatch):
    assert make(images, tmp_path).keep == make(images, tmp_path, "fcn8s").keep == "memory"
    monkeypatch.setattr("cbst_mx.selftrain.target_maps._MEMORY", 100)
    assert make(images, tmp_path).keep == "disk"
    assert make(images, tmp_path, "fcn8s").keep == "compact"
    prior = np.ones((CLASSES, 5, 8), np.float32)
    for options in ({"prior": prior}, {"long_side": 100}, {"on_device": True}):
        assert make(images, tmp_path, "fcn8s", **options).keep == "recompute"
    monkeypatch.setattr("cbst_mx.selftrain.target_maps._COMPACT_MEMORY", 100)
    assert make(images, tmp_path, "fcn8s").keep == "recompute"
    assert make(images, tmp_path, keep="memory", scales=(0.5, 1.0)).keep == "recompute"
    with pytest.raises(ConfigError, match="keep must be one of auto, memory, compact, disk, recompute, got 'tape'"):
        make(images, tmp_path, keep="tape")


@pytest.mark.parametrize("kind", ["bicubic", "pillow"])
@pytest.mark.parametrize("on_device", [False, True])
def test_maps_of_other_interpolations_are_those_of_class_maps(images, tmp_path, kind, on_device):
    bilinear, found = (
        [view.confidence[0] for _, view in make(images, tmp_path, interpolation=name, on_device=on_device)]
        for name in ("bilinear", kind)
    )
    outputs = [
        stride_probabilities(network_of("resnet38"), [images.image(i)], ctx=mx.cpu(), **LOOKS)
        for i in range(len(SIZES))
    ]
    for (maps, part), size, other, value in zip(outputs, SIZES, bilinear, found):
        extent = (part[0] / 8, part[1] / 8)
        whole = ClassMaps(maps[0].asnumpy(), size, interpolation=kind, extent=extent, stride=8).rows(0, size[0])
        np.testing.assert_array_equal(value, whole.max(axis=0))
        assert np.abs(value - other).max() > 1e-4
    with pytest.raises(ConfigError, match="interpolation must be one of bilinear, bicubic, pillow, got 'nearest'"):
        make(images, tmp_path, interpolation="nearest")


def test_several_scales(images, tmp_path):
    values, _, labels = labels_of(make(images, tmp_path, scales=(0.5, 1.0)), policy="global")
    assert len(set(values.tolist())) == 1
    kept = sum((label != 255).sum() for label in labels.values())
    assert kept == pytest.approx(0.3 * sum(h * w for h, w in SIZES), abs=2)  # ties at most
