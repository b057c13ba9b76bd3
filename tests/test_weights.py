"""Foreign weights: the networks they give, what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import re

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli.weights import import_weights as command
from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.label_space import CITYSCAPES_19, NTHU_13, SYNTHIA_16, LabelSpace
from cbst_mx.labelling import MapFolder
from cbst_mx.networks import parameters, weights
from cbst_mx.networks.build import build_network
from cbst_mx.networks.matching import match
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.networks.weights import read_weights
from symbols import get_network
from symbols.backend import gluon, mx
from tests import torch_format
from tests.test_matching import vgg_shapes

nn = gluon.nn
SMALL = {"width": 1 / 32}


def save(path, arrays):
    mx.nd.save(str(path), {name: mx.nd.array(array) for name, array in arrays.items()})
    return path


def numpy_parameters(network):
    return {key: parameter.data().asnumpy() for key, parameter in network._collect_params_with_prefix().items()}


def released(network):
    """Return the tensors of a ResNet-38 as a released file names them."""
    tensors = {}
    for parameter in network.collect_params().values():
        prefix = "aux:" if "running" in parameter.name else "arg:"
        tensors[prefix + parameter.name.replace("running", "moving")] = parameter.data().asnumpy()
    return tensors


def resnet38(num_classes=19, seed=3):
    """Build a small network whose batch-norm statistics are not the initial ones."""
    network = build_network(NetworkSpec("resnet38", num_classes, SMALL), mx.cpu(), seed=seed)
    rng = np.random.default_rng(0)
    for parameter in network.collect_params(".*running.*").values():
        parameter.set_data(mx.nd.array(rng.uniform(0.5, 1.5, parameter.shape)))
    return network


def run(file, *arguments):
    result = CliRunner().invoke(command, [str(file), *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, (CheckpointError, ConfigError, SystemExit)):
        raise result.exception
    return result


# ------------------------------------------------------------------------------------------------------ whole networks


def test_released_names_give_the_same_network(tmp_path):
    network = resnet38()
    file = save(tmp_path / "released.bin", released(network))  # the ending does not matter
    out = tmp_path / "out.params"
    result = run(file, "--network", "resnet38", "--num-classes", 19, "--out", out, "--width", 1 / 32)
    assert result.exit_code == 0, result.output
    assert "MXNet .params: 195 matched, 0 missing, 0 shape mismatch, 0 unexpected; 0 left as" in result.output
    assert re.search(r"matched +bn7_running_var +128 +aux:bn7_moving_var *\n", result.output)
    assert "RGB images in [0, 1] normalised by mean [0.485, 0.456, 0.406]" in result.output
    loaded = get_network("resnet38", num_classes=19, **SMALL)
    loaded.load_parameters(str(out))
    x = mx.nd.random.normal(shape=(1, 3, 40, 64))
    logits = loaded(x)
    assert logits.shape == (1, 19, 5, 8)
    # the same values, once hybridised
    np.testing.assert_allclose(logits.asnumpy(), network(x).asnumpy(), rtol=1e-5, atol=1e-5)
    sidecar = json.loads(parameters.sidecar_path(out).read_text())
    assert sidecar["label_space"]["name"] == "cityscapes-19"
    assert sidecar["network"]["options"] == SMALL
    assert sidecar["imported"] == {
        "file": "released.bin",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "format": "MXNet .params",
        "initialised": [],
        "seed": 0,
        "input": {"channels": "rgb", "range": "normalised"},
    }
    again, spec, space = parameters.load_network(out, mx.cpu())
    assert space.names == CITYSCAPES_19.names
    assert spec.num_classes == 19


def test_two_readings_of_a_file_can_be_compared(tmp_path):
    file = save(tmp_path / "released.params", released(resnet38()))
    source, again = read_weights(file), read_weights(file)
    assert source == source
    assert source != again  # each has arrays of its own
    assert len({source, again}) == 2


def test_imagenet_weights_give_the_trunk_and_a_seeded_classifier(tmp_path):
    tensors = {name: value for name, value in released(resnet38()).items() if not re.search("conv6a|linear", name)}
    tensors["arg:linear1000_weight"] = np.ones((1000, 128))
    file = save(tmp_path / "imagenet.params", tensors)
    results = []
    for out in (tmp_path / "a.params", tmp_path / "b.params"):
        result = run(file, "--network", "resnet38", "--num-classes", 16, "--out", out, "--width", 1 / 32)
        assert result.exit_code == 0, result.output
        assert "linear16_weight, linear16_bias cannot be in it and stay as initialised (seed 0)" in result.output
        results.append(mx.nd.load(str(out)))
    initialised = numpy_parameters(build_network(NetworkSpec("resnet38", 16, SMALL), mx.cpu(), seed=weights.SEED))
    for name in ("head.2.weight", "head.4.weight"):
        for result in results:
            np.testing.assert_array_equal(result[name].asnumpy(), initialised[name])
    np.testing.assert_array_equal(results[0]["stem.weight"].asnumpy(), tensors["arg:conv1a_weight"])
    assert parameters.read_sidecar(tmp_path / "a.params")[1].names == SYNTHIA_16.names


def test_imagenet_weights_fill_the_classifier_form(tmp_path):
    spec = NetworkSpec("resnet38", 1000, {"form": "classifier", **SMALL})
    original, filled = (build_network(spec, mx.cpu(), seed=seed, classifier=True) for seed in (1, 2))
    tensors = released(original)
    tensors["arg:linear1000_weight"] = tensors["arg:linear1000_weight"].reshape(1000, 128, 1, 1)  # as a convolution
    source = read_weights(save(tmp_path / "imagenet.params", tensors))
    weights.fill(filled, source, weights.compare(source, filled))
    x = mx.nd.random.normal(shape=(1, 3, 64, 64))
    np.testing.assert_array_equal(filled(x).asnumpy(), original(x).asnumpy())


def test_the_imagenet_file_can_stay_a_classifier_and_become_the_segmentation_network(tmp_path):
    spec = NetworkSpec("resnet38", 1000, {"form": "classifier", **SMALL})
    original = build_network(spec, mx.cpu(), seed=1, classifier=True)
    file = save(tmp_path / "imagenet.params", released(original))
    kept, out = tmp_path / "classifier.params", tmp_path / "segmentation.params"
    result = run(
        *(file, "--network", "resnet38", "--num-classes", 1000, "--option", "form=classifier"),
        *("--width", 1 / 32, "--out", kept),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "resnet38 with 1,000 classes of whole images, for RGB images" in result.output
    assert parameters.read_sidecar(kept)[:2] == (spec, None)
    loaded = get_network("resnet38", 1000, form="classifier", **SMALL)
    loaded.load_parameters(str(kept))
    x = mx.nd.random.normal(shape=(1, 3, 64, 64))
    # the same operators, once hybridised
    np.testing.assert_allclose(loaded(x).asnumpy(), original(x).asnumpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match="must give a label per pixel here, got a classifier of whole images"):
        parameters.load_network(kept, mx.cpu())
    result = run(
        *(kept, "--network", "resnet38", "--num-classes", 19, "--option", "form=segmentation", "--out", out),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "linear19_weight, linear19_bias cannot be in it and stay as initialised (seed 0)" in result.output
    network, _, space = parameters.load_network(out, mx.cpu())
    assert space.names == CITYSCAPES_19.names
    assert network(x).shape == (1, 19, 8, 8)
    np.testing.assert_array_equal(network.stem.weight.data().asnumpy(), original.stem.weight.data().asnumpy())


class TinyVGG(gluon.HybridBlock):
    """VGG-16 with the layers and names of Gluon's, at width 1/32."""

    def __init__(self):
        super().__init__()
        self.features = nn.HybridSequential()
        for count, channels in ((2, 2), (2, 4), (3, 8), (3, 16), (3, 16)):
            for _ in range(count):
                self.features.add(nn.Conv2D(channels, 3, padding=1), nn.Activation("relu"))
            self.features.add(nn.MaxPool2D(strides=2))
        for _ in range(2):
            self.features.add(nn.Dense(128, activation="relu"), nn.Dropout(0.5))
        self.output = nn.Dense(10)

    def hybrid_forward(self, F, x):
        return self.output(self.features(x))


@pytest.mark.parametrize("style", ["gluon", "zip", "stream", "module"])
def test_vgg16_computes_the_same_inside_fcn8s(tmp_path, style):
    mx.random.seed(5)
    vgg = TinyVGG()
    vgg.initialize(mx.init.Xavier(magnitude=4))
    x = mx.nd.random.normal(shape=(1, 3, 224, 224))
    vgg(x)
    tensors = numpy_parameters(vgg)
    assert list(tensors) == list(vgg_shapes("gluon"))
    file, out = tmp_path / "weights", tmp_path / "out.params"
    if style == "gluon":
        vgg.save_parameters(str(file))
    else:
        names = [("module." if style == "module" else "") + name for name in vgg_shapes("torchvision")]
        torch_format.save(file, dict(zip(names, tensors.values())), "stream" if style == "stream" else "zip")
    result = run(file, "--network", "fcn8s", "--num-classes", 21, "--out", out, "--width", 1 / 32)
    assert result.exit_code == 0, result.output
    assert f"{'MXNet .params' if style == 'gluon' else 'PyTorch .pth'}: 30 matched, 9 missing" in result.output
    network, spec, space = parameters.load_network(out, mx.cpu())
    assert space.name == "numbered-21"
    assert space.names[20] == "class 20"
    assert len(set(space.palette)) == 21
    network.hybridize(False)
    # the middle of the 7 x 7 maps sees exactly what the dense layers see
    middle = network.fc7(network.fc6(network.trunk(x)[2])).asnumpy()[0, :, 3, 3]
    expected = vgg.features(x).asnumpy()[0]
    assert expected.max() > 0.1
    np.testing.assert_allclose(middle, expected, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- own files


@pytest.fixture
def own(tmp_path):
    """Write a file of this program: FCN8s for 19 classes with other statistics than ImageNet's."""
    spec = NetworkSpec("fcn8s", 19, {"skip_scale": [0.5, 0.25], **SMALL}, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    path = tmp_path / "own.params"
    parameters.save_parameters(path, build_network(spec, mx.cpu(), seed=7), spec, CITYSCAPES_19)
    return path, spec


def importing(path, name="fcn8s", num_classes=19, **options):
    out = path.with_name("imported.params")
    return out, weights.import_weights(read_weights(path), name, num_classes, out, **options)


def test_own_files_bring_their_options_and_normalisation(own):
    path, spec = own
    out, (written, space) = importing(path)
    assert written == spec
    assert space.names == CITYSCAPES_19.names
    for name, array in mx.nd.load(str(path)).items():
        np.testing.assert_array_equal(mx.nd.load(str(out))[name].asnumpy(), array.asnumpy())


def test_own_files_of_other_classes_need_permission(own):
    path, _ = own
    with pytest.raises(CheckpointError, match="fills 30 of the network's 39 tensors: score_fr.weight, score_fr.bias, "):
        importing(path, num_classes=13)
    assert not path.with_name("imported.params").exists()
    out, (_, space) = importing(path, num_classes=13, allow_missing=["score_*", "upscore*"])
    assert space is NTHU_13
    imported = parameters.read_sidecar(out)
    assert imported[0].num_classes == 13
    record = json.loads(parameters.sidecar_path(out).read_text())["imported"]
    assert record["format"] == "cbst-mx parameters"
    assert len(record["initialised"]) == 9


def test_unnamed_classes_are_the_same_for_weights_and_for_maps(own, tmp_path):
    path, _ = own
    _, (_, space) = importing(path, num_classes=7, allow_missing=["score_*", "upscore*"])
    np.save(tmp_path / "image.npy", np.full((7, 2, 2), 1 / 7, np.float32))
    assert MapFolder.open(tmp_path).label_space == space


def test_own_files_of_another_network_or_label_space_or_altered_are_refused(own):
    path, _ = own
    with pytest.raises(CheckpointError, match="own.params holds parameters of another network: fcn8s, not resnet38"):
        importing(path, name="resnet38")
    other = LabelSpace("other", tuple(map(str, range(19))), CITYSCAPES_19.palette, {})
    with pytest.raises(CheckpointError, match="own.params was trained for label space cityscapes-19, not other"):
        importing(path, label_space=other)
    with pytest.raises(ConfigError, match="label space synthia-16 has 16 classes, but the network has 19"):
        importing(path, label_space=SYNTHIA_16)
    with pytest.raises(ConfigError, match="out must be another file than the weights"):
        weights.import_weights(read_weights(path), "fcn8s", 19, path)
    data = path.read_bytes()
    for changed in (data[:-4], data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(changed)
        with pytest.raises(
            CheckpointError, match="own.params was altered or truncated: its SHA-256 is not its sidecar's"
        ):
            read_weights(path)


def test_parameters_saved_by_gluon_alone_are_read(tmp_path):
    network = resnet38()
    network.save_parameters(str(tmp_path / "plain.params"))
    out, _ = importing(tmp_path / "plain.params", "resnet38", options=SMALL)
    stored = mx.nd.load(str(out))
    for name, array in numpy_parameters(network).items():
        np.testing.assert_array_equal(stored[name].asnumpy(), array)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_partial_match_prints_the_table_and_writes_nothing(tmp_path):
    tensors = released(resnet38())
    del tensors["arg:conv1a_weight"]
    tensors["aux:bn7_moving_mean"] = np.zeros(127)
    file, out = save(tmp_path / "f.params", tensors), tmp_path / "out.params"
    arguments = ("--network", "resnet38", "--num-classes", 19, "--out", out, "--width", 1 / 32)
    result = run(file, *arguments)
    assert result.exit_code == 1
    assert "fills 193 of the network's 195 tensors" in str(result.exception)
    assert re.search(r"missing +conv1a_weight +2x3x3x3 *\n", result.output)
    assert re.search(r"shape mismatch +bn7_running_mean +128 +aux:bn7_moving_mean +127", result.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.params"]
    result = run(file, *arguments, "--allow-missing", "conv1a_*", "--allow-missing", "bn7_running_mean")
    assert result.exit_code == 0
    assert "193 matched, 1 missing, 1 shape mismatch, 0 unexpected; 2 left" in result.output


@pytest.mark.parametrize("name", ["[/x]", "[red]a", "a\x1b[2Jb", "a\nb", "x" * 300])
def test_names_of_the_file_are_printed_as_they_are_or_quoted(tmp_path, name):
    file = save(tmp_path / "f.params", {**released(resnet38()), name: np.ones(3)})
    result = run(
        *(file, "--network", "resnet38", "--num-classes", 19, "--out", tmp_path / "out.params"), *("--width", 1 / 32)
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "\x1b" not in result.output
    expected = name if name.isprintable() and len(name) < 200 else repr(name[:200])
    assert "1 unexpected" in result.output
    assert expected[:30] in result.output
    with pytest.raises(CheckpointError) as error:
        match({"conv": (1,), name: (1,)}, {"conv": (1,)}, structural={name: "conv"})
    assert str(error.value) == f"the file has two tensors for conv: conv and {expected}"


def test_values_that_are_not_finite_are_refused(tmp_path):
    tensors = released(resnet38())
    tensors["aux:bn7_moving_var"][3] = np.inf
    file = save(tmp_path / "f.params", tensors)
    with pytest.raises(CheckpointError, match="f.params has values in aux:bn7_moving_var that are not finite"):
        importing(file, "resnet38", options=SMALL)
    assert not (tmp_path / "imported.params").exists()


def test_files_of_other_formats_are_refused(tmp_path):
    file = tmp_path / "weights.params"
    for content in (b"", b"import os", b"cos\nsystem\n(S'true'\ntR.", b"\x89HDF\r\n\x1a\n"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="must be MXNet .params or PyTorch .pth by content, got a"):
            read_weights(file)
    np.save(tmp_path / "weights.npy", np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match="begins with b'.x93NUMPY"):
        read_weights(tmp_path / "weights.npy")
    np.savez(tmp_path / "weights.npz", a=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match="NumPy's .npz and other archives are not read"):
        read_weights(tmp_path / "weights.npz")
    with pytest.raises(CheckpointError, match="none.params cannot be read: No such file"):
        read_weights(tmp_path / "none.params")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_weights(tmp_path)


def test_cut_params_are_refused(tmp_path):
    file = save(tmp_path / "f.params", {"arg:conv1a_weight": np.ones((2, 3, 3, 3))})
    data = file.read_bytes()
    for length in (9, 40, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="is not a readable MXNet .params file"):
            read_weights(file)
    mx.nd.save(str(file), [mx.nd.ones(3)])
    with pytest.raises(CheckpointError, match="holds arrays without names"):
        read_weights(file)


@pytest.mark.parametrize("form", ["zip", "stream", "raw"])
def test_the_command_runs_no_code_of_the_file(tmp_path, form):
    class Attack:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'marker')!r}, 'w').close()",)

    program = pickle.dumps({"features.0.weight": Attack()}, 2)
    pickle.loads(program)
    (tmp_path / "marker").unlink()  # the attack is one
    file = tmp_path / "vgg16.pth"
    if form == "raw":
        file.write_bytes(program)
    else:
        (torch_format.write_zip if form == "zip" else torch_format.write_stream)(file, program, {})
    result = run(file, "--network", "fcn8s", "--num-classes", 19, "--out", tmp_path / "out.params", "--width", 1 / 32)
    assert result.exit_code == 1
    assert "vgg16.pth is refused: its pickle asks for __builtin__.exec, which tensors do not" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["vgg16.pth"]


def test_the_model_zoo_is_read_but_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("MXNET_HOME", str(tmp_path))
    path = tmp_path / "models" / "vgg16-e660d456.params"
    sha1 = "e660d4569ccb679ec68f1fd3cce07a387252a90a"  # Gluon's model_store lists the same
    with pytest.raises(CheckpointError) as error:
        read_weights("zoo:vgg16")
    assert str(error.value) == (
        f"zoo:vgg16 needs {path}, and nothing is downloaded: put the file of that name there (SHA-1 {sha1})"
    )
    path.parent.mkdir()
    save(path, {"features.0.weight": np.ones((2, 3, 3, 3))})
    with pytest.raises(CheckpointError, match=f"zoo:vgg16 must have SHA-1 {sha1}, but .* has [0-9a-f]{{40}}: damaged"):
        read_weights("zoo:vgg16")
    monkeypatch.setattr(weights, "ZOO_SHA1", hashlib.sha1(path.read_bytes()).hexdigest())
    assert read_weights("zoo:vgg16").tensors["features.0.weight"].shape == (2, 3, 3, 3)
    with pytest.raises(ConfigError, match="must be zoo:vgg16, got 'zoo:alexnet'"):
        read_weights("zoo:alexnet")


def test_arguments_are_checked(tmp_path):
    file = save(tmp_path / "f.params", released(resnet38()))
    arguments = (file, "--network", "resnet38", "--num-classes", 19, "--out", tmp_path / "o.params")

    def refusal(*more):
        result = run(*arguments, *more)
        assert result.exit_code == 1
        assert not (tmp_path / "o.params").exists()
        return str(result.exception)

    assert refusal("--label-space", "kitti") == (
        "label space must be one of cityscapes-19, nthu-13, synthia-16, a number of classes from 1 to 253, "
        "or a YAML file, got 'kitti'"
    )
    assert refusal("--option", "depth") == "option must have the form KEY=VALUE, got 'depth'"
    assert refusal("--option", "foo=3") == (
        "network: the options of resnet38 must be among batch_norm, dropout, form, width, got 'foo'"
    )
    assert "dropout must hold the rates of the last two units" in refusal("--option", "dropout=[a, b]")
    assert "a classifier of whole images has no label space, got cityscapes-19" in refusal(
        "--option", "form=classifier", "--label-space", "cityscapes-19"
    )
    assert "--allow-missing must name tensors of the network such as" in refusal("--allow-missing", "score_*")
    assert "batch_norm must be one of frozen, batch, got 'none'" in refusal("--batch-norm", "none")
    assert run(*arguments, "--network", "unet").exit_code == 2


def test_options_and_descriptions_reach_the_sidecar(tmp_path):
    description = tmp_path / "data.yaml"
    description.write_text(
        "label_space: {name: mine, names: [a, b, c], ids: {0: 0, 1: 1, 2: 2},\n"
        "              palette: [[1, 0, 0], [2, 0, 0], [3, 0, 0]]}\n"
        "splits: {all: {images: ['*.png']}}\n"
    )
    file = tmp_path / "f.params"
    mx.nd.save(str(file), {"trunk.stage1.0.0.weight": mx.nd.ones((2, 3, 3, 3))})
    result = run(
        *(file, "--network", "fcn8s", "--num-classes", 3, "--out", tmp_path / "o.params", "--width", 1 / 32),
        *("--option", "skip_scale=[1e-4, 1e-2]", "--batch-norm", "batch", "--allow-missing", "*"),
        *("--label-space", description),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    spec, space, _ = parameters.read_sidecar(tmp_path / "o.params")
    assert spec.options == {"skip_scale": [1e-4, 1e-2], "batch_norm": "batch", "width": 1 / 32}
    assert space.name == "mine"
    assert space.names == ("a", "b", "c")


# ------------------------------------------------------------------------------------------- some classes of a network

SHARED = [CITYSCAPES_19.names.index(name) for name in NTHU_13.names]


@pytest.mark.parametrize("name", ["fcn8s", "resnet38"])
@pytest.mark.parametrize("ours", [True, False])
def test_the_shared_classes_of_a_larger_network_are_kept_by_name(tmp_path, name, ours):
    spec = NetworkSpec(name, 19, SMALL)
    network = resnet38() if name == "resnet38" else build_network(spec, mx.cpu(), seed=3)
    file, out = tmp_path / "cityscapes.params", tmp_path / "nthu.params"
    if ours:
        parameters.save_parameters(file, network, spec, CITYSCAPES_19)
    else:
        tensors = released(network) if name == "resnet38" else numpy_parameters(network)
        save(file, tensors)
    arguments = [
        "--network",
        name,
        "--num-classes",
        13,
        "--out",
        out,
        "--width",
        1 / 32,
        "--classes-of",
        "cityscapes-19",
    ]
    result = run(file, *arguments)
    assert result.exit_code == 0, result.output
    smaller, written, space = parameters.load_network(out, mx.cpu())
    assert (written.num_classes, space.names) == (13, NTHU_13.names)
    x = mx.nd.random.normal(shape=(1, 3, 64, 64))
    # every score belongs to one class, so those of the others are none of its business
    np.testing.assert_allclose(smaller(x).asnumpy(), network(x).asnumpy()[:, SHARED], rtol=1e-5, atol=1e-5)


def test_classes_that_a_file_has_not_are_refused(own, tmp_path):
    path, _ = own
    source = read_weights(path)
    with pytest.raises(
        ConfigError, match="^classes of cityscapes-19 must be among those of the file, nthu-13, got wall, "
    ):
        weights.keep_classes(source, NTHU_13, CITYSCAPES_19)
    with pytest.raises(CheckpointError, match="was trained for label space cityscapes-19, not synthia-16$"):
        weights.keep_classes(source, SYNTHIA_16, NTHU_13)
    plain = tmp_path / "plain.params"
    plain.write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="plain.params has no layer of 16 classes, those of synthia-16$"):
        weights.keep_classes(read_weights(plain), SYNTHIA_16, NTHU_13)
