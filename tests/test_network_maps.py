"""Probability maps: normalisation, flip and scale averaging, upsampling, batches of mixed sizes, devices."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import Draft, write_rgb_png
from cbst_mx.data.transforms import normalise
from cbst_mx.errors import DataError, NotFiniteError
from cbst_mx.networks.build import build_network
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.selftrain import network_maps
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.network_maps import (
    confidences,
    fitting_batch,
    predictions,
    probabilities,
    probability_maps,
)
from cbst_mx.selftrain.on_device import select
from symbols.backend import gluon, has_bfloat16, mx
from symbols.softmax import upsampled_softmax

ROOT = Path(__file__).parents[1]
SPEC = NetworkSpec("fcn8s", 4, {"width": 0.03125, "batch_norm": "none"})
LOOKS = {"mean": SPEC.mean, "std": SPEC.std}


class ChannelLogits(gluon.HybridBlock):
    """The image's own channels as logits, at a stride."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride
        self.smallest = 1

    def hybrid_forward(self, F, x):
        return F.Pooling(x, kernel=(self.stride,) * 2, stride=(self.stride,) * 2, pool_type="avg")


def images(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


def test_probabilities_are_the_softmax_of_the_logits():
    pair = images((6, 8), (6, 8))
    maps = probabilities(ChannelLogits(), pair, ctx=mx.cpu(), **LOOKS).asnumpy()
    for image, probability in zip(pair, maps):
        z = np.exp(normalise(image).astype(np.float64))
        np.testing.assert_allclose(probability, z / z.sum(axis=0), rtol=1e-5)  # float32 exponentials


def test_flip_average_makes_a_mirrored_image_give_mirrored_probabilities():
    network = build_network(SPEC, mx.cpu(), seed=0)
    (image,) = images((32, 48))
    both = [
        probabilities(network, [i], ctx=mx.cpu(), flip=True, **LOOKS)[0].asnumpy()
        for i in (image, np.ascontiguousarray(image[:, ::-1]))
    ]
    np.testing.assert_allclose(both[0], both[1][:, :, ::-1], rtol=1e-5, atol=1e-7)  # the sum's order differs
    single = probabilities(network, [image], ctx=mx.cpu(), **LOOKS)[0].asnumpy()
    assert np.abs(single - both[0]).max() > 1e-4


@pytest.mark.parametrize("context", [mx.cpu(0), mx.cpu(1)], ids=str)
@pytest.mark.parametrize("size", [(32, 48), (37, 45), (9, 70)])  # the last one is filled up to the network's smallest
@pytest.mark.parametrize("flip", [False, True])
def test_the_last_upsampling_of_fcn8s_is_done_with_the_softmax(size, flip, context, monkeypatch):
    network = build_network(SPEC, context, seed=0)
    pair = images(size, size)
    largest = []

    def spied(looks, factor, size):
        largest.extend(look.shape[2:] for look in looks)
        return upsampled_softmax(looks, factor, size)

    monkeypatch.setattr(network_maps, "upsampled_softmax", spied)
    options = {"ctx": context, "flip": flip, **LOOKS}
    maps = probabilities(network, pair, **options)
    assert maps.context == context
    assert largest == [tuple(-(-max(side, 17) // 8) for side in size)] * (1 + flip)
    monkeypatch.setattr("symbols.fcn8s.FCN8s.without_last_upsampling", lambda self: contextlib.nullcontext(1))
    plain = probabilities(network, pair, **options).asnumpy()
    assert len(largest) == 1 + flip
    np.testing.assert_allclose(maps.asnumpy(), plain, rtol=1e-5, atol=1e-7)  # logits in another order of sums


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_in_mixed_precision_the_softmax_is_float32():
    code = """
import numpy as np
from symbols.backend import enable_amp, mx
enable_amp("bfloat16")
from tests.test_network_maps import LOOKS, SPEC, build_network, images, normalise, probabilities
network, (image,) = build_network(SPEC, mx.cpu(), seed=0), images((37, 45))
expected = mx.nd.softmax(network(mx.nd.array(normalise(image)[None])).astype("float32"), axis=1).asnumpy()
found = probabilities(network, [image], ctx=mx.cpu(), **LOOKS).asnumpy()
assert found.dtype == np.float32
assert np.abs(found.sum(axis=1) - 1).max() < 1e-6
assert np.abs(found - expected).max() < 0.02  # bfloat16 has 8 bits of mantissa
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)


def test_learned_upsampling_stays_in_the_network(monkeypatch):
    network = build_network(SPEC, mx.cpu(), seed=0)
    network.upscore8.weight.set_data(network.upscore8.weight.data() * 1.5)
    monkeypatch.setattr(network_maps, "upsampled_softmax", None)
    pair = images((37, 45))
    expected = mx.nd.softmax(network(mx.nd.array(normalise(pair[0])[None])), axis=1).asnumpy()
    found = probabilities(network, pair, ctx=mx.cpu(), **LOOKS).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_maps_have_the_images_size_and_sum_to_one(scales):
    (image,) = images((64, 96))
    for network in (ChannelLogits(stride=8), build_network(SPEC, mx.cpu(), seed=0)):
        probability = probabilities(network, [image], ctx=mx.cpu(), scales=scales, flip=True, **LOOKS)[0]
        assert probability.shape[1:] == (64, 96)
        np.testing.assert_allclose(probability.sum(axis=0).asnumpy(), 1, rtol=1e-5)


def test_at_a_stride_every_cell_lies_where_its_pixels_are():
    # 20 x 27 pixels: the last cells are half empty, and must not stretch the others
    image = np.zeros((20, 27, 3), np.uint8)
    image[:8, :8] = 255
    network = ChannelLogits(stride=8)
    small = probabilities(network, [image[:16, :24]], ctx=mx.cpu(), flip=False, **LOOKS)[0].asnumpy()
    whole = probabilities(network, [image], ctx=mx.cpu(), flip=False, **LOOKS)[0].asnumpy()
    assert whole.shape == (3, 20, 27)
    # up to the middle of the last whole cells, behind which the next ones enter
    np.testing.assert_allclose(whole[:, :12, :20], small[:, :12, :20], rtol=1e-5)


def test_images_too_small_for_the_network_are_filled_up():
    network = build_network(SPEC, mx.cpu(), seed=0)
    (image,) = images((5, 40))
    maps = probabilities(network, [image], ctx=mx.cpu(), flip=True, scales=(0.5, 1.0), **LOOKS)
    assert maps.shape == (1, 4, 5, 40)
    np.testing.assert_allclose(maps.sum(axis=1).asnumpy(), 1, rtol=1e-5)


def test_scales_are_combined_by_mean_or_maximum():
    (image,) = images((32, 48))
    single = [
        probabilities(ChannelLogits(), [image], ctx=mx.cpu(), scales=(s,), **LOOKS)[0].asnumpy() for s in (0.5, 1.0)
    ]
    for combine, expected in (("mean", (single[0] + single[1]) / 2), ("max", np.maximum(*single))):
        maps = probabilities(ChannelLogits(), [image], ctx=mx.cpu(), scales=(0.5, 1.0), combine=combine, **LOOKS)[0]
        np.testing.assert_allclose(maps.asnumpy(), expected, rtol=1e-6)


def test_the_long_side_sets_the_size_of_the_input():
    seen = []

    class Spy(ChannelLogits):
        def forward(self, x):
            seen.append(x.shape[2:])
            return super().forward(x)

    (image,) = images((30, 60))
    for scales in ((1.0,), (0.5, 1.0)):
        maps = probabilities(Spy(), [image], ctx=mx.cpu(), long_side=100, scales=scales, **LOOKS)
        assert maps.shape == (1, 3, 30, 60)
    assert seen == [(50, 100), (25, 50), (50, 100)]


def test_images_of_several_sizes_come_in_order(tmp_path):
    sizes = [(32, 40), (32, 40), (24, 40), (32, 40), (32, 40), (32, 40)]
    for number, image in enumerate(images(*sizes)):
        write_rgb_png(tmp_path / f"{number}.png", image)
    chosen = ImageSet([str(n) for n in range(6)], [tmp_path / f"{n}.png" for n in range(6)])
    network = build_network(SPEC, mx.cpu(), seed=0)
    found = list(probability_maps(network, chosen, batch_size=2, ctx=mx.cpu(), **LOOKS))
    assert [index for index, _ in found] == list(range(6))
    for (_, probability), image in zip(found, images(*sizes)):
        alone = probabilities(network, [image], ctx=mx.cpu(), **LOOKS)[0]
        # another batch size may take another convolution kernel
        np.testing.assert_allclose(probability.asnumpy(), alone.asnumpy(), rtol=1e-4, atol=1e-6)


def labels_on(ctx):
    network = build_network(SPEC, mx.cpu(), seed=0)
    network.collect_params().reset_ctx(ctx)
    maps = probabilities(network, images((32, 48), (32, 48)), ctx=ctx, flip=True, **LOOKS)
    assert maps.context == ctx
    pool = ConfidencePool(4)
    for probability in maps:
        pool.add(probability)
    thresholds = pool.thresholds("class-balanced", 0.3)
    return thresholds.values, np.stack([select(probability, thresholds) for probability in maps])


def test_two_contexts_give_the_same_pseudo_labels():
    for first, second in zip(labels_on(mx.cpu(0)), labels_on(mx.cpu(1))):
        np.testing.assert_array_equal(first, second)


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same_pseudo_labels():
    limits, labels = labels_on(mx.cpu())
    gpu_limits, gpu_labels = labels_on(mx.gpu(0))
    np.testing.assert_allclose(gpu_limits, limits, rtol=1e-3)  # other convolution algorithms
    assert (gpu_labels == labels).mean() > 0.99


# --- ahead


class Seen(ImageSet):
    """Images in memory that note the threads which read them; one of them may be unreadable."""

    __slots__ = ("arrays", "bad", "threads")

    def __init__(self, arrays, bad=None):
        super().__init__([f"street {index}" for index in range(len(arrays))], [""] * len(arrays))
        self.arrays, self.bad, self.threads = arrays, bad, set()

    def image(self, index):
        self.threads.add(threading.current_thread().name)
        if index == self.bad:
            raise DataError(f"image {index} is damaged")
        return self.arrays[index]


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_drafts_are_shrunk_to_the_input_and_maps_have_the_images_size(tmp_path, scales):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 8, 12, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    paths = [tmp_path / "0.jpg", tmp_path / "1.jpg"]
    for path, block in zip(paths, blocks):
        path.write_bytes(simplejpeg.encode_jpeg(block, quality=95))
    options = {"ctx": mx.cpu(), "scales": scales, "long_side": 45, **LOOKS}
    pictures, network = ImageSet(["0", "1"], paths), ChannelLogits(stride=2)
    found = list(confidences(network, pictures, resampling="draft", **options))
    parts = [simplejpeg.decode_jpeg(path.read_bytes(), min_height=32, min_width=48) for path in paths]
    assert parts[0].shape == (32, 48, 3)
    drafts = [Draft(part, (64, 96, 3), 2) for part in parts]
    for draft, (_, sure, predicted) in zip(drafts, found):
        maps = probabilities(network, [draft], resampling="program", **options)[0].asnumpy()
        assert predicted.shape == (64, 96)
        np.testing.assert_array_equal(sure, maps.max(axis=0))
        np.testing.assert_array_equal(predicted, maps.argmax(axis=0))
    whole = list(confidences(network, pictures, resampling="program", **options))
    assert any((one[1] != other[1]).any() for one, other in zip(found, whole))
    # a set that does not read files has no drafts
    seen = Seen(list(blocks))
    for kinds in zip(*(confidences(network, seen, resampling=kind, **options) for kind in ("draft", "program"))):
        np.testing.assert_array_equal(kinds[0][1], kinds[1][1])


def test_an_input_larger_than_half_the_image_is_of_the_whole_one(tmp_path):
    block = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    (tmp_path / "0.jpg").write_bytes(simplejpeg.encode_jpeg(block))
    pictures, options = ImageSet(["0"], [tmp_path / "0.jpg"]), {"ctx": mx.cpu(), "long_side": 49, **LOOKS}
    one, other = (
        next(confidences(ChannelLogits(), pictures, resampling=kind, **options))[1] for kind in ("draft", "program")
    )
    np.testing.assert_array_equal(one, other)


SEVERAL = ((8, 12), (8, 12), (8, 12), (6, 10), (8, 12), (8, 12))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_what_is_computed_ahead_is_what_is_computed_alone(batch_size, scales):
    arrays, options = images(*SEVERAL), {"ctx": mx.cpu(), "scales": scales, "flip": True, **LOOKS}
    network = ChannelLogits(stride=2)
    alone = [probabilities(network, [image], **options)[0].asnumpy() for image in arrays]
    seen = Seen(arrays)
    found = list(confidences(network, seen, batch_size=batch_size, **options))
    assert [index for index, _, _ in found] == list(range(len(arrays)))
    for maps, (_, sure, predicted) in zip(alone, found):
        np.testing.assert_array_equal(sure, maps.max(axis=0))
        np.testing.assert_array_equal(predicted, maps.argmax(axis=0))
    (reader,) = seen.threads  # one thread, and not this one
    assert reader != threading.current_thread().name
    streamed = list(predictions(network, iter(arrays), batch_size=batch_size, **options))
    for (_, _, predicted), (_, other) in zip(found, streamed):
        np.testing.assert_array_equal(predicted, other)


class Batches(ChannelLogits):
    """Notes how many images pass at once."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def hybrid_forward(self, F, x):
        self.seen.append(x.shape[0])
        return super().hybrid_forward(F, x)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((8, 12), {}, [8, 1]),
        ((16, 32), {}, [4, 4, 1]),
        ((32, 64), {}, [1] * 9),
        ((64, 128), {}, [1] * 9),  # one passes whatever its size
        ((8, 12), {"long_side": 48}, [1] * 9),  # as the network sees it
        ((8, 12), {"scales": (0.5, 2.0)}, [5, 5, 4, 4]),  # at each scale
        ((32, 64), {"long_side": 16}, [1] * 9),  # as its result is
        ((32, 64), {"batch_size": 3}, [3, 3, 3]),  # whoever asks for a number gets it
    ],
)
def test_of_large_images_fewer_pass_at_once(monkeypatch, size, options, expected):
    monkeypatch.setattr(network_maps, "_AT_ONCE", 32 * 64)
    network = Batches()
    given = {"ctx": mx.cpu(), **LOOKS, **options}
    found = list(predictions(network, iter(images(*[size] * 9)), **given))
    assert network.seen == expected
    alone = [label for image in images(*[size] * 9) for _, label in predictions(network, iter([image]), **given)]
    np.testing.assert_array_equal([label for _, label in found], alone)


def test_of_images_of_several_sizes_each_size_passes_as_it_may(monkeypatch):
    monkeypatch.setattr(network_maps, "_AT_ONCE", 32 * 64)
    network = Batches()
    sizes = ((8, 12), (8, 12), (32, 64), (32, 64), (8, 12))
    list(confidences(network, iter(images(*sizes)), ctx=mx.cpu(), **LOOKS))
    assert network.seen == [2, 1, 1, 1]


def test_a_large_image_of_the_papers_size_passes_alone():
    assert fitting_batch((1024, 2048), on_cpu=True) == 1
    assert fitting_batch((512, 1024), on_cpu=True) == 1
    assert fitting_batch((256, 512), on_cpu=True) == 4
    assert fitting_batch((64, 128), on_cpu=True) == 8
    assert fitting_batch((64, 128), on_cpu=False) == 1  # on a GPU one is as fast as several


@pytest.mark.parametrize(("batch_size", "expected"), [(None, [1] * 9), (4, [4, 4, 1])])
def test_on_a_gpu_images_pass_one_by_one(monkeypatch, batch_size, expected):
    passed = []

    def one(network, batch, *, ctx, **options):  # there is no GPU to compute on
        assert ctx == mx.gpu(0)
        passed.append(len(batch))
        return mx.nd.ones((len(batch), 3, 8, 12))

    monkeypatch.setattr(network_maps, "probabilities", one)
    given = {"ctx": mx.gpu(0), "batch_size": batch_size, **LOOKS}
    for looks in (predictions, confidences, probability_maps):
        assert len(list(looks(ChannelLogits(), iter(images(*[(8, 12)] * 9)), **given))) == 9
        assert passed == expected
        passed.clear()


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_an_image_that_cannot_be_read_does_not_take_those_before_it_away(bad):
    options, seen = {"ctx": mx.cpu(), "batch_size": 1, **LOOKS}, []
    with pytest.raises(DataError, match=f"image {bad} is damaged"):
        seen.extend(index for index, _ in predictions(ChannelLogits(), Seen(images(*SEVERAL), bad), **options))
    assert seen == list(range(bad))


def test_frames_without_names_are_named_by_their_number():
    class Broken(ChannelLogits):
        def hybrid_forward(self, F, x):
            return x * np.inf

    with pytest.raises(NotFiniteError, match="^image 0: probabilities must be finite"):
        list(predictions(Broken(), images((4, 4)), ctx=mx.cpu(), **LOOKS))
