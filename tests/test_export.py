"""Exports: files that run elsewhere and agree, all of them or none, and one sentence where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli.export import export as command
from cbst_mx.errors import CBSTError, ConfigError, RunError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks import export
from cbst_mx.networks.export import export_network
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import gluon, mx
from tests.test_forms import NETWORKS, random_network

SMALL = NetworkSpec("fcn8s", 19, {"width": 0.03125})
# of the largest logit: two programs sum in other orders
ROUNDING = 1e-5


def exported(which, out, **options):
    """Export a network with random weights; return it and what was written."""
    name, settings = NETWORKS[which]
    network = random_network(name, **settings)
    return network, export_network(network, out, NetworkSpec(name, 19, settings), CITYSCAPES_19, **options)


def random_images(*shape):
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------------- MXNet's own form


@pytest.mark.parametrize("which", NETWORKS)
def test_symbol_and_parameters_run_in_a_program_without_this_package(which, tmp_path):
    network, result = exported(which, tmp_path / "out")
    name = NETWORKS[which][0]
    assert left_in(tmp_path / "out") == [f"{name}-0000.params", f"{name}-symbol.json", f"{name}.json"]
    assert result.symbol_difference == 0
    assert result.onnx_difference is None
    assert result.folded == 0
    images = random_images(2, 3, 40, 56)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys
import numpy as np
import mxnet as mx
net = mx.gluon.SymbolBlock.imports("{name}-symbol.json", ["data"], "{name}-0000.params")
np.save("logits.npy", net(mx.nd.array(np.load("../images.npy"))).asnumpy())
assert not any(module.split(".")[0] in ("cbst_mx", "symbols") for module in sys.modules)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path / "out", check=True)
    # the same operators in the same order; another thread count may change the last bits
    expected = network(mx.nd.array(images)).asnumpy()
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "logits.npy"), expected, rtol=0, atol=ROUNDING * np.abs(expected).max()
    )


def test_the_description_says_how_to_feed_the_network(tmp_path):
    exported("resnet38", tmp_path / "out")
    values = json.loads((tmp_path / "out" / "resnet38.json").read_text())
    assert values["input"]["mean"] == [0.485, 0.456, 0.406]
    assert values["input"]["std"] == [0.229, 0.224, 0.225]
    assert values["classes"] == list(CITYSCAPES_19.names)
    assert values["network"] == {"name": "resnet38", "options": {"width": 0.03125}}


@pytest.mark.parametrize(("which", "count"), [("fcn8s with batch norm", 15), ("resnet38", 20)])
def test_folded_export_agrees_and_has_fewer_operators(which, count, tmp_path):
    network, result = exported(which, tmp_path / "out", fold=True)
    assert result.folded == count
    (symbol,) = (tmp_path / "out").glob("*-symbol.json")
    operators = [node["op"] for node in json.loads(symbol.read_text())["nodes"]]
    kept = sum(name.endswith("running_var") for name in network.collect_params()) - count
    assert operators.count("BatchNorm") == kept
    assert 0 < result.symbol_difference < 1e-4  # rounding; 0 would mean that nothing was folded


# ---------------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("which", NETWORKS)
@pytest.mark.parametrize("fold", [False, True])
def test_onnx_file_agrees_for_any_batch_height_and_width(which, fold, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    network, result = exported(which, tmp_path / "out", onnx=True, fold=fold)
    path = tmp_path / "out" / f"{NETWORKS[which][0]}.onnx"
    model = onnx.load(path)
    (data,) = model.graph.input  # the weights are not inputs
    assert [dim.dim_param or dim.dim_value for dim in data.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    # not the newest ones that the installed onnx knows, which an older runtime refuses
    assert (model.ir_version, [kind.version for kind in model.opset_import]) == (7, [13])
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["classes"].split(",")[13] == "car"
    assert properties["std"] == "0.229,0.224,0.225"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 37, 45), (3, 3, 64, 48), (2, 3, 17, 100)):
        images = random_images(*shape)
        (got,) = session.run(["logits"], {"data": images})
        expected = network(mx.nd.array(images)).asnumpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())
    assert 0 < result.onnx_difference < 1e-4


def test_onnx_file_of_one_size(tmp_path):
    onnx = pytest.importorskip("onnx")
    exported("resnet38", tmp_path / "small", onnx=True, size=(9, 16))
    exported("resnet38", tmp_path / "out", onnx=True, size=(33, 50))
    model = onnx.load(tmp_path / "out" / "resnet38.onnx")
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert shapes == [[1, 3, 33, 50], [1, 19, 5, 7]]


def test_an_onnx_file_that_disagrees_is_not_left(tmp_path, monkeypatch):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    convert = mx.onnx.export_model

    def wrong(symbol, parameters, **options):
        arrays = mx.nd.load(parameters)
        arrays["arg:linear19_bias"] += 1
        mx.nd.save(parameters, arrays)
        return convert(symbol, parameters, **options)

    monkeypatch.setattr(mx.onnx, "export_model", wrong)
    with pytest.raises(
        CBSTError, match=r"nothing exported: the logits of resnet38.onnx in onnxruntime differ by 1 from"
    ):
        exported("resnet38", tmp_path / "out", onnx=True)
    assert left_in(tmp_path) == []


def test_an_operator_without_onnx_form_is_named(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph

    for registry in MXNetGraph.registry_.values():
        if "slice_like" in registry:
            monkeypatch.delitem(registry, "slice_like")
    with pytest.raises(CBSTError, match="the network has no ONNX form: .*slice_like"):
        exported("fcn8s", tmp_path / "out", onnx=True)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "the ONNX export needs the package onnx, which is not installed: pip install 'cbst_mx\\[onnx\\]'"),
        ("1.19.0", "the ONNX export of mxnet 1.9.1 works with onnx from 1.14 to below 1.19, this is 1.19.0"),
        ("1.13.1", "the ONNX export of mxnet 1.9.1 works with onnx from 1.14 to below 1.19, this is 1.13.1"),
    ],
)
def test_a_missing_or_unfit_onnx_is_one_sentence(version, sentence, tmp_path, monkeypatch):
    def find(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(export.metadata, "version", find)
    with pytest.raises(ConfigError, match=sentence):
        exported("resnet38", tmp_path / "out", onnx=True)
    assert left_in(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ all or none


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    with pytest.raises(RunError, match="out must be a new or empty folder"):
        exported("fcn8s", tmp_path / "out")
    assert left_in(tmp_path / "out") == ["note.txt"]


def test_a_symbol_that_reads_back_wrong_is_not_left(tmp_path, monkeypatch):
    read = gluon.SymbolBlock.imports

    def damaged(*arguments, **options):
        block = read(*arguments, **options)
        name = next(name for name in block.collect_params() if name.endswith("bias"))
        block.collect_params()[name].data()[:] = 100
        return block

    monkeypatch.setattr(gluon.SymbolBlock, "imports", staticmethod(damaged))
    with pytest.raises(CBSTError, match="nothing exported: the logits of fcn8s-symbol.json in MXNet differ by"):
        exported("fcn8s", tmp_path / "out")
    assert left_in(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, path, *arguments, **options):
        Path(f"{path}-0000.params").write_bytes(b"")
        Path(f"{path}-symbol.json").write_text("{}")

    monkeypatch.setattr(gluon.HybridBlock, "export", full)
    with pytest.raises(RunError, match="cannot write .*out: no space left on the disk"):
        exported("fcn8s", tmp_path / "out")
    assert left_in(tmp_path) == []


def test_the_present_folder_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RunError, match=r"^cannot write \.: "):  # a folder that processes work in cannot be replaced
        exported("fcn8s", Path("."))
    assert left_in(tmp_path) == ["here"]


def test_a_size_too_small_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="size must be at least 17 x 17 pixels, got 16 x 64"):
        exported("fcn8s", tmp_path / "out", size=(16, 64))
    with pytest.raises(ConfigError, match="size must be at least 1 x 1 pixels, got 0 x 64"):
        exported("resnet38", tmp_path / "out", size=(0, 64))


# ---------------------------------------------------------------------------------------------------- command line


def test_the_command_prints_files_and_differences(tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = tmp_path / "parameters.params"
    save_parameters(path, random_network("fcn8s", width=0.03125), SMALL, CITYSCAPES_19)
    arguments = ["--parameters", str(path), "--out", str(tmp_path / "out"), "--onnx", "--fold-batch-norm"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    for text in (
        "fcn8s.onnx",
        "0 batch norms put into",
        "symbol read back: 0\n",
        "largest difference of a logit, onnxr",
    ):
        assert text in result.output
    assert (tmp_path / "out" / "fcn8s.onnx").is_file()


def test_a_size_without_onnx_is_wrong_usage(tmp_path):
    arguments = ["--parameters", str(tmp_path / "p.params"), "--out", str(tmp_path / "out"), "--size", "32", "32"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert "--size is that of the ONNX file: give --onnx too" in result.output
    assert left_in(tmp_path) == []
