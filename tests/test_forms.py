"""Forms for inference: equal to the network up to rounding, bands that are bands, int8 near enough, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cbst_mx.cli import main
from cbst_mx.data.image_files import read_label, write_label_png, write_rgb_png
from cbst_mx.data.transforms import normalise
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks.forms import BandedNetwork, check_form, exact_form, folded, network_graph
from cbst_mx.networks.int8 import quantised
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.selftrain.network_maps import probabilities
from symbols import get_network
from symbols.backend import has_bfloat16, mx

NETWORKS = {
    "fcn8s": ("fcn8s", {"width": 0.0625}),
    "fcn8s with batch norm": ("fcn8s", {"width": 0.0625, "batch_norm": "frozen"}),
    "resnet38": ("resnet38", {"width": 0.03125}),
}
LOOKS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ROOT = Path(__file__).resolve().parents[1]
# of the largest logit: what float32 sums in another order differ by over some 40 layers
ROUNDING = 1e-5


@pytest.fixture(params=NETWORKS)
def network(request):
    name, options = NETWORKS[request.param]
    return random_network(name, **options)


def random_network(name, **options):
    """Return a network whose batch norms have random statistics too."""
    mx.random.seed(0)
    network = get_network(name, 19, **options)
    network.initialize(mx.init.Xavier())
    network(mx.nd.zeros((1, 3, 32, 32)))
    rng = np.random.default_rng(0)
    for key, parameter in network.collect_params().items():
        if key.endswith(("gamma", "running_var")):
            parameter.set_data(mx.nd.array(rng.uniform(0.5, 2, parameter.shape)))
        elif key.endswith(("beta", "running_mean", "bias")):
            parameter.set_data(mx.nd.array(rng.normal(0, 0.3, parameter.shape)))
    network.hybridize(static_alloc=True, static_shape=True)
    return network


def random_images(*shape):
    return mx.nd.array(np.random.default_rng(1).normal(size=shape))


def difference(form, network, images):
    """Return the largest difference of a logit, over the largest logit."""
    got, expected = form(images).asnumpy(), network(images).asnumpy()
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    return np.abs(got - expected).max() / np.abs(expected).max()


# --------------------------------------------------------------------------------------------------- exact forms


@pytest.mark.parametrize("size", [(203, 61), (37, 45)])
def test_fused_and_banded_forms_equal_the_network(network, size):
    images = random_images(1, 3, *size)
    assert difference(exact_form(network, ctx=mx.cpu(), form="fused"), network, images) < ROUNDING
    for rows in (1, 40):
        for form in ("plain", "fused"):
            banded = exact_form(network, ctx=mx.cpu(), form=form, band_rows=rows)
            assert difference(banded, network, images) < ROUNDING, (rows, form)


def test_one_form_takes_images_of_several_sizes(network):
    forms = [exact_form(network, ctx=mx.cpu(), form="fused"), BandedNetwork(network, 32)]
    for shape in ((1, 3, 64, 96), (3, 3, 45, 37), (1, 3, 64, 96)):
        for form in forms:
            assert difference(form, network, random_images(*shape)) < ROUNDING


def test_mirrored_images_and_averages_are_right_in_bands(network):
    rng = np.random.default_rng(2)
    (image,) = rng.integers(0, 256, (1, 120, 64, 3)).astype(np.uint8)
    options = {"ctx": mx.cpu(), "flip": True, "scales": (0.75, 1.0), **LOOKS}
    expected = probabilities(network, [image], **options).asnumpy()
    got = probabilities(BandedNetwork(network, 40), [image], **options).asnumpy()
    np.testing.assert_allclose(got, expected, atol=ROUNDING)  # probabilities are at most 1


def test_the_plain_form_is_the_network_itself_and_other_forms_leave_it_alone(network):
    assert exact_form(network, ctx=mx.cpu()) is network
    images = random_images(1, 3, 64, 96)
    before = network(images).asnumpy()
    for form in (
        exact_form(network, ctx=mx.cpu(), form="fused"),
        BandedNetwork(network, 32),
        folded(network, mx.cpu())[0],
        quantised(network, [np.zeros((64, 96, 3), np.uint8)], ctx=mx.cpu(), **LOOKS)[0],
    ):
        form(images).wait_to_read()
        np.testing.assert_array_equal(network(images).asnumpy(), before)


def test_large_maps_exist_only_in_bands(network):
    banded = BandedNetwork(network, 64)
    rows = [[] for _ in banded._parts]
    for (_, block), seen in zip(banded._parts, rows):
        block.register_forward_pre_hook(
            lambda _, inputs, seen=seen: (
                seen.append(inputs[0].shape[2]) if isinstance(inputs[0], mx.nd.NDArray) else None
            )
        )
    banded(random_images(1, 3, 512, 32))
    for (piece, _), seen in zip(banded._parts, rows):
        stride = piece.image_stride / piece.extent.stride  # of the piece's input
        if piece.large:
            assert len(seen) == 512 // 64
            assert max(seen) <= 64 / stride + (piece.extent.last - piece.extent.first) + piece.align
        else:
            assert seen == [512 / stride]
    assert any(piece.large for piece, _ in banded._parts)


@pytest.mark.parametrize(("name", "count"), [("fcn8s with batch norm", 15), ("resnet38", 20)])
def test_folded_batch_norms_are_exact(name, count):
    network = random_network(NETWORKS[name][0], **NETWORKS[name][1])
    block, number = folded(network, mx.cpu())
    # FCN8s: all; ResNet-38: one in each of 15 units of two convolutions, two in each of 2 units of three, and the one
    # behind the first convolution
    assert number == count
    operators = [node.op for node in network_graph(block).nodes]
    assert operators.count("BatchNorm") == [node.op for node in network_graph(network).nodes].count("BatchNorm") - count
    block.hybridize()
    for shape in ((2, 3, 64, 96), (1, 3, 37, 45)):
        assert difference(block, network, random_images(*shape)) < ROUNDING  # 1e-4 is asked for


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_bands_keep_the_process_in_mixed_precision():
    code = """
import numpy as np
from symbols.backend import enable_amp, mx
enable_amp("bfloat16")
from tests.test_forms import BandedNetwork, random_images, random_network, exact_form
for name in ("fcn8s", "resnet38"):
    network = random_network(name, width=0.0625)
    images = random_images(1, 3, 203, 61)
    expected = network(images).astype("float32").asnumpy()
    for form in ("plain", "fused"):
        got = exact_form(network, ctx=mx.cpu(), form=form, band_rows=40)(images)
        assert got.dtype == np.float32
        assert np.abs(got.asnumpy() - expected).max() < 0.05 * np.abs(expected).max(), (name, form)
    assert any(node.op == "amp_cast" for piece, _ in BandedNetwork(network, 40)._parts for node in piece.graph.nodes)
"""
    # bfloat16 has 8 bits of mantissa, 0.4 %; over 40 layers, rounded at other places, about 2 % were seen
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_bands_lower_the_peak_memory():
    code = """
import re, sys
from tests.test_forms import BandedNetwork, random_images, random_network
network = random_network("fcn8s", width=0.5)
form = BandedNetwork(network, 64) if sys.argv[1] == "bands" else network
peak = lambda: int(re.search("VmHWM:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1])  # not a parent's
before = peak()
form(random_images(1, 3, 768, 768)).wait_to_read()
print(peak() - before)
"""
    peaks = [
        int(subprocess.run([sys.executable, "-W", "ignore", "-c", code, how], cwd=ROOT, capture_output=True).stdout)
        for how in ("bands", "whole")
    ]
    # whole: at least the first convolution's 32 x 768 x 768 floats (75 MB) and its input; bands: a quarter-size map and
    # bands of 64 rows
    assert peaks[0] < 0.75 * peaks[1]


# --------------------------------------------------------------------------------------------------------- int8


def pictures(count, size=(64, 96)):
    """Return smooth pictures: noise has no structure that a convolution keeps, and quantises badly."""
    rows, columns = np.mgrid[: size[0], : size[1]] / 32
    rng = np.random.default_rng(3)
    waves = [
        np.stack([np.sin(rows * a + columns * b + c) for a, b, c in rng.uniform(0, 5, (3, 3))], 2) for _ in range(count)
    ]
    return [(127.5 * (wave + 1)).astype(np.uint8) for wave in waves]


def test_int8_is_near_and_says_how_near(network):
    images = pictures(3)
    block, near = quantised(network, images, ctx=mx.cpu(), same_class=0, **LOOKS)
    assert near.images == 3
    # 8 bits per number: about 1 % noise per layer; random weights leave logits closer together than trained ones
    assert near.same_class > 0.75
    assert 0 < near.relative_error < 0.2
    operators = {node.op for node in network_graph(block).nodes}
    assert "_contrib_quantize_v2" in operators
    assert "Convolution" not in operators
    # the first one stays in float32, and those that give the logits: of FCN8s the scores of three maps
    assert near.int8 == near.convolutions - (4 if network.stride == 1 else 2)
    other = mx.nd.array(np.stack([image.transpose(2, 0, 1) / 127.5 - 1 for image in pictures(2, (45, 70))]))
    assert difference(block, network, other) < 0.5  # another size and batch


def agreement(network, block, batches):
    """Return share of equal classes and relative error over `batches`, worked out plainly."""
    expected = [network(batch).asnumpy() for batch in batches]
    got = [block(batch).asnumpy() for batch in batches]
    equal = np.concatenate([(a.argmax(axis=1) == b.argmax(axis=1)).ravel() for a, b in zip(expected, got)])
    error = np.concatenate([(a - b).ravel() for a, b in zip(expected, got)])
    return equal.mean(), np.linalg.norm(error) / np.linalg.norm(np.concatenate([a.ravel() for a in expected]))


def test_int8_is_measured_on_every_image_at_its_own_size(network):
    images = [*pictures(1), *pictures(1, (48, 81)), *pictures(1, (120, 40))]
    block, near = quantised(network, images, ctx=mx.cpu(), **LOOKS)
    batches = [mx.nd.array(normalise(image, **LOOKS)[np.newaxis]) for image in images]
    assert near.images == 3
    # sums in float64 there, in float32 here
    np.testing.assert_allclose((near.same_class, near.relative_error), agreement(network, block, batches), rtol=1e-4)


def test_int8_takes_its_ranges_from_every_image():
    network = random_network("fcn8s", width=0.03125)
    images = [np.full((40, 40, 3), 120, np.uint8), *pictures(1), np.full((48, 81, 3), 250, np.uint8)]
    block = quantised(network, images, ctx=mx.cpu(), same_class=0, **LOOKS)[0]
    nodes = network_graph(block).nodes
    first = next(node for node in nodes if node.op == "_contrib_quantize_v2")  # of what the first convolution gives
    batches = [mx.nd.array(normalise(image, **LOOKS)[np.newaxis]) for image in images]
    values = [network.trunk.stage1[0](batch) for batch in batches]
    found = [float(first.attrs[f"{end}_calib_range"]) for end in ("min", "max")]
    expected = (min(float(v.min().asscalar()) for v in values), max(float(v.max().asscalar()) for v in values))
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # printed with six digits


def test_int8_calibrates_on_what_the_network_will_be_given():
    network = random_network("resnet38", width=0.03125)
    images, given = pictures(2), []
    options = {"ctx": mx.cpu(), "flip": True, "scales": (0.5, 1.5), "long_side": 60, **LOOKS}

    def run(net, image):
        probabilities(net, [image], **options)

    block, near = quantised(network, images, ctx=mx.cpu(), run=run, **LOOKS)
    hook = network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].copy()))
    for image in images:
        run(network, image)
    hook.detach()
    assert [batch.shape for batch in given] == 2 * [*2 * [(1, 3, 24, 32)], *2 * [(1, 3, 64, 96)]]
    np.testing.assert_allclose((near.same_class, near.relative_error), agreement(network, block, given), rtol=1e-4)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("form", "ctx", "rows", "sentence"),
    [
        ("int4", mx.cpu(), None, "inference must be one of plain, fused, int8, got 'int4'"),
        ("int8", mx.gpu(0), None, r"inference int8 works on the CPU only \(oneDNN\), got ctx gpu; use plain"),
        ("fused", mx.gpu(0), None, r"inference fused works on the CPU only \(oneDNN\), got ctx gpu; use plain"),
        ("int8", mx.cpu(1), None, r"inference int8 works with ctx cpu only, .* same processor, got cpu\(1\)"),
        ("int8", mx.cpu(), 64, "tile works with inference plain or fused, not with int8"),
        ("plain", mx.cpu(), 0, "tile must be at least 1 row, got 0"),
    ],
)
def test_refusals(form, ctx, rows, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_form(form, ctx, rows)


def test_int8_needs_images():
    network = random_network("fcn8s", width=0.03125)
    with pytest.raises(ConfigError, match="needs at least one image to calibrate on, got none"):
        quantised(network, [], ctx=mx.cpu(), **LOOKS)
    with pytest.raises(ConfigError, match="inference int8 needs images to calibrate on"):
        exact_form(network, ctx=mx.cpu(), form="int8")


# -------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A parameter file and two images."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"width": 0.03125}
    path = folder / "parameters.params"
    save_parameters(path, random_network("fcn8s", **options), NetworkSpec("fcn8s", 19, options), CITYSCAPES_19)
    for index, image in enumerate(pictures(2, (96, 64))):
        write_rgb_png(folder / "images" / f"{index}.png", image)
    return path, folder / "images"


def predict(trained, out, *options):
    path, images = trained
    arguments = ["predict", "--parameters", str(path), "--out", str(out), *options, str(images)]
    return CliRunner().invoke(main, arguments)


def test_predict_gives_the_same_classes_in_every_exact_form(trained, tmp_path):
    forms = {"plain": [], "fused": ["--inference", "fused"], "bands": ["--tile", "32", "--inference", "fused"]}
    labels = {}
    for name, options in forms.items():
        result = predict(trained, tmp_path / name, *options)
        assert result.exit_code == 0, result.output
        labels[name] = np.stack([read_label(tmp_path / name / f"{index}_label.png") for index in range(2)])
    for name in ("fused", "bands"):
        # rounding may decide where two classes are equally probable
        assert (labels[name] == labels["plain"]).mean() > 0.999


def test_predict_says_how_near_int8_is(trained, tmp_path):
    result = predict(trained, tmp_path / "out", "--inference", "int8", "--calibration-images", "1")
    assert result.exit_code == 0, result.output
    assert "int8 against float32, images calibrated on (1): same class at" in result.output
    assert "warning: int8 is approximate" in result.output
    assert (tmp_path / "out" / "1_label.png").is_file()


def test_predict_refuses_int8_on_another_context(trained, tmp_path):
    result = predict(trained, tmp_path / "out", "--inference", "int8", "--ctx", "cpu:1")
    assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert result.output == "Error: inference int8 works with ctx cpu only, which is the same processor, got cpu(1)\n"
    assert predict(trained, tmp_path / "out", "--inference", "fused", "--ctx", "cpu:1").exit_code == 0


def predict_of(trained, out, *images):
    result = CliRunner().invoke(
        main, ["predict", "--parameters", str(trained[0]), "--no-flip", "--out", str(out), *map(str, images)]
    )
    return result, sorted(path.name for path in out.glob("*_label.png"))


def test_predict_finds_images_in_all_folders_and_says_what_it_leaves_out(trained, tmp_path):
    picture = pictures(1, (32, 32))[0]
    folder, disk = tmp_path / "in", tmp_path / "disk"
    for name in ("in/a.png", "in/x/b.PNG", "in/x/a.png", "disk/c.png"):
        write_rgb_png(tmp_path / name, picture)
    for ending in ("tif", "bmp", "webp"):
        Image.fromarray(picture).save(folder / f"{ending}.{ending}")
    (folder / "y").symlink_to(disk)
    (folder / "circle").symlink_to(folder)
    (folder / "._a.png").write_bytes(b"a Mac's")
    (folder / "b.heic").write_bytes(b"a telephone's")
    result, names = predict_of(trained, folder / "out", folder)
    assert result.exit_code == 0, result.output
    stems = ("a", "b", "bmp", "c", "tif", "webp", "x__a")
    assert names == [f"{stem}_label.png" for stem in stems]
    assert result.output.splitlines()[0] == (
        "3 left out: 1 hidden (._a.png), 1 linked a second time (circle), 1 of another kind (b.heic)"
    )
    assert "7 images segmented into" in result.output

    # what was written before is no image, wherever the next results go
    again, names = predict_of(trained, tmp_path / "out2", folder, folder / "a.png")
    assert again.exit_code == 0, again.output
    assert len(names) == 7
    assert "14 written by predict (a_label.png, a_overlay.png" in again.output

    (folder / "x" / "d.png").symlink_to("gone.png")
    result, names = predict_of(trained, tmp_path / "out3", folder)
    assert (result.exit_code, names) == (1, [])
    assert "d.png is a link to nothing (gone.png)" in result.output


def test_predict_names_images_of_several_arguments_apart(trained, tmp_path):
    for name in ("p/a.png", "q/a.png", "q/r/a.png"):
        write_rgb_png(tmp_path / name, pictures(1, (32, 32))[0])
    result, names = predict_of(trained, tmp_path / "out", tmp_path / "p" / "a.png", tmp_path / "q")
    assert result.exit_code == 0, result.output
    assert names == ["p__a_label.png", "q__a_label.png", "q__r__a_label.png"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: os.mkfifo(path), "must be a file, got a pipe or device"),
        (lambda path: path.symlink_to("gone.png"), "does not exist"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no image: files that end in .png, .jpg"),
    ],
)
def test_predict_refuses_what_is_no_file(trained, tmp_path, make, sentence):
    make(tmp_path / "a.png")
    result, names = predict_of(trained, tmp_path / "out", tmp_path / "a.png")
    assert (result.exit_code, names) == (1, [])
    assert sentence in result.output
    assert result.output.startswith("Error: ")


def test_predict_turns_pictures_as_viewers_do(trained, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = pictures(1, (32, 48))[0]
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    write_rgb_png(tmp_path / "upright.png", np.rot90(picture, -1))
    result, _ = predict_of(trained, tmp_path / "out", tmp_path / "turned.png", tmp_path / "upright.png")
    assert result.exit_code == 0, result.output
    assert "turned upright as their EXIF marks say: 1 of 2 images, and their labels with them" in result.output
    for kind in ("label", "overlay"):
        turned, upright = (tmp_path / "out" / f"{name}_{kind}.png" for name in ("turned", "upright"))
        assert turned.read_bytes() == upright.read_bytes()
    assert read_label(tmp_path / "out" / "turned_label.png").shape == (48, 32)


def test_predict_makes_no_folder_before_there_is_something_to_write(trained, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"no image")
    result = predict((trained[0], images), tmp_path / "out")
    assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)


def test_evaluate_calibrates_at_the_sizes_the_network_sees(trained, tmp_path, monkeypatch):
    from cbst_mx.networks import int8

    sizes = []
    original = int8._Calibrated.watch

    def noting(self, batch):
        sizes.append(batch.shape[2:])
        return original(self, batch)

    monkeypatch.setattr(int8._Calibrated, "watch", noting)
    for index in range(2):
        label = np.zeros((96, 64), np.uint8)
        write_label_png(tmp_path / "labels" / f"{index}.png", label, CITYSCAPES_19)
        write_rgb_png(tmp_path / "images" / f"{index}.png", pictures(1, (96, 64))[0])
    description = tmp_path / "data.yaml"
    description.write_text(
        f"label_space: {{name: mine, names: [{', '.join(CITYSCAPES_19.names)}], "
        f"palette: {[list(colour) for colour in CITYSCAPES_19.palette]}, "
        f"ids: {{{', '.join(f'{i}: {i}' for i in range(19))}}}}}\n"
        "splits: {all: {images: ['images/*.png'], labels: 'labels/{stem}.png'}}\n"
    )
    arguments = ["evaluate", "--parameters", trained[0], "--format", "folder", "--root", tmp_path, "--split", "all"]
    arguments += ["--description", description, "--inference", "int8", "--scales", "0.5,1", "--long-side", "48"]
    result = CliRunner().invoke(main, [str(argument) for argument in [*arguments, "--no-flip"]])
    assert result.exit_code == 0, result.output
    assert sizes == 2 * [(24, 17), (48, 32)]  # FCN8s takes 17 columns at least


def test_predict_refuses_int8_in_bands_before_it_writes(trained, tmp_path):
    result = predict(trained, tmp_path / "out", "--inference", "int8", "--tile", "64")
    assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert "tile works with inference plain or fused" in result.output
