"""The front door for trained networks: NumPy in, NumPy out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import cbst_mx
from cbst_mx.data import ImageSet
from cbst_mx.errors import CheckpointError, ConfigError, DataError
from cbst_mx.label_space import NTHU_13
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import load_network as load_plain
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.selftrain.network_maps import probabilities
from symbols.backend import mx

SPEC = NetworkSpec("resnet38", 13, {"width": 1 / 32})


@pytest.fixture(scope="module")
def parameters(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "parameters.params"
    save_parameters(path, build_network(SPEC, mx.cpu(), seed=4), SPEC, NTHU_13)
    return path


class ImageSetOf(ImageSet):
    """Images in memory."""

    def __init__(self, images):
        super().__init__([str(index) for index in range(len(images))], [""] * len(images))
        self.pictures = images

    def image(self, index):
        return self.pictures[index]


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "options", [{}, {"flip": False}, {"scales": [0.5, 1], "combine": "max"}, {"long_side": 40}], ids=str
)
def test_the_maps_are_those_of_the_network(parameters, options):
    image = picture(40, 56)
    got = cbst_mx.load_network(str(parameters), **options).predict(image)
    assert isinstance(got, np.ndarray)
    assert (got.shape, got.dtype) == ((13, 40, 56), np.float32)
    network, spec, _ = load_plain(parameters, mx.cpu())
    looks = {"mean": spec.mean, "std": spec.std, "ctx": mx.cpu(), **{"flip": True, "resampling": "program", **options}}
    np.testing.assert_array_equal(got, probabilities(network, [image], **looks)[0].asnumpy())


@pytest.mark.parametrize("given", [("pillow", "linear"), ("bicubic", "program"), ("pillow", "program")], ids=str)
def test_maps_and_labels_are_resized_as_asked(parameters, given):
    images = ImageSetOf([picture(41, 55), picture(24, 32, 1)])
    predictor = cbst_mx.load_network(parameters, long_side=48, upsampling=given[0], resampling=given[1])
    network, spec, _ = load_plain(parameters, mx.cpu())
    looks = {"mean": spec.mean, "std": spec.std, "ctx": mx.cpu(), "flip": True, "long_side": 48}
    plain = cbst_mx.load_network(parameters, long_side=48)
    for index, label in enumerate(predictor.labels(images)):
        image = images.image(index)
        expected = probabilities(network, [image], interpolation=given[0], resampling=given[1], **looks)[0].asnumpy()
        np.testing.assert_array_equal(predictor.predict(image), expected)
        np.testing.assert_array_equal(label, expected.argmax(axis=0))
        assert (expected != plain.predict(image)).any()


def test_a_list_holds_images_of_any_sizes_and_gives_a_map_for_each_in_order(parameters):
    predictor = cbst_mx.load_network(parameters, batch_size=2)
    images = [picture(24, 32, 1), picture(24, 32, 2), picture(24, 32, 3), picture(17, 9, 4)]
    maps = predictor.predict(images)
    assert [one.shape for one in maps] == [(13, *image.shape[:2]) for image in images]
    for image, one in zip(images, maps):
        # batches of other sizes may sum in another order
        np.testing.assert_allclose(one, predictor.predict(image), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.sum(axis=0), 1, rtol=1e-5)
    for same in (tuple(images[:2]), np.stack(images[:2])):
        np.testing.assert_array_equal(predictor.predict(same), np.stack(maps[:2]))
    assert predictor.predict([]) == []


def test_it_says_what_the_classes_are_and_what_was_loaded(parameters):
    predictor = cbst_mx.load_network(parameters)
    assert predictor.num_classes == 13
    assert (predictor.label_space.names, predictor.label_space.palette) == (NTHU_13.names, NTHU_13.palette)
    assert predictor.spec == SPEC
    assert predictor.agreement is None
    assert predictor == predictor
    assert predictor != dataclasses.replace(predictor, batch_size=1)  # no arrays are compared


@pytest.mark.parametrize("options", [{"inference": "fused"}, {"tile": 16, "batch_size": 1}], ids=str)
def test_exact_forms_give_the_same_up_to_rounding(parameters, options):
    image = picture(64, 48)
    plain, other = (cbst_mx.load_network(parameters, **given).predict(image) for given in ({}, options))
    np.testing.assert_allclose(other, plain, atol=1e-5)  # float32 sums in another order


def test_int8_is_calibrated_on_the_images_given(parameters):
    images = [picture(40, 56, seed) for seed in (1, 2)]
    predictor = cbst_mx.load_network(parameters, inference="int8", calibration=images)
    assert predictor.agreement.images == 2
    assert predictor.predict(images[0]).shape == (13, 40, 56)
    with pytest.raises(ConfigError, match=r"^inference int8 needs at least one image to calibrate on, got none$"):
        cbst_mx.load_network(parameters, inference="int8")


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (
            np.zeros((8, 8, 3)),
            r"must be uint8 arrays of shape \(H, W, 3\), got float64 of shape \(8, 8, 3\) for image 0",
        ),
        (np.zeros((8, 8), np.uint8), r"must be uint8 arrays .*, got uint8 of shape \(8, 8\) for image 0"),
        (np.zeros((8, 8, 4), np.uint8), r"must be uint8 arrays .*, got uint8 of shape \(8, 8, 4\) for image 0"),
        (np.zeros((3, 8, 8), np.uint8), r"must be uint8 arrays .*, got uint8 of shape \(3, 8, 8\) for image 0"),
        (np.zeros((0, 8, 3), np.uint8), r"must have at least one pixel, got \(0, 8, 3\) for image 0"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"must be uint8 arrays .*, got uint8 of shape \(8, 8, 1\) for image 0"),
        ([picture(8, 8), "b.png"], r"must be uint8 arrays .*, got str for image 1"),
        ("a.png", r"must be an array of shape \(H, W, 3\) or a list of them, got str"),
        (None, r"must be an array of shape \(H, W, 3\) or a list of them, got NoneType"),
        ((image for image in ()), r"must be an array of shape \(H, W, 3\) or a list of them, got generator"),
    ],
    ids=range(10),
)
def test_what_is_no_image_is_refused_in_one_sentence(parameters, images, sentence):
    with pytest.raises(DataError, match=f"^images {sentence}$"):
        cbst_mx.load_network(parameters).predict(images)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ctx": "tpu"}, "ctx must be cpu, cpu:N, gpu, gpu:N or several as in gpu:0,1, got 'tpu'"),
        ({"scales": []}, r"scales must hold at least one factor, each above 0, got \[\]"),
        ({"scales": [1, 0]}, r"scales must hold at least one factor, each above 0, got \[1, 0\]"),
        ({"combine": "sum"}, "combine must be mean or max, got 'sum'"),
        ({"upsampling": "cubic"}, "upsampling must be one of bilinear, bicubic, pillow, got 'cubic'"),
        ({"resampling": "area"}, "resampling must be one of linear, program, draft, got 'area'"),
        ({"long_side": 0}, "long_side must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
        ({"inference": "fp8"}, "inference must be one of plain, fused, int8, got 'fp8'"),
        ({"tile": 0}, "tile must be at least 1 row, got 0"),
    ],
    ids=str,
)
def test_refused_options(parameters, options, sentence):
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        cbst_mx.load_network(parameters, **options)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"^parameter file .*none\.params does not exist$"):
        cbst_mx.load_network(tmp_path / "none.params")


def test_the_package_without_mxnet_has_its_names_and_says_what_a_call_needs(tmp_path):
    code = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mxnet":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocker())
import cbst_mx
print(cbst_mx.__version__, "load_network" in dir(cbst_mx), "mxnet" in sys.modules)
try:
    cbst_mx.load_network
except ImportError as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [cbst_mx.__version__, "True", "False", "MXNetUnavailableError"], done.stderr
