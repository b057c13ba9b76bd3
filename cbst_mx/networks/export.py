"""Networks as files that need nothing of this package: MXNet's symbol and parameters, and ONNX.

Every file is read back and run on the same images as the network before it gets its name. B images, C classes, h x w
pixels.
"""

from __future__ import annotations

import errno
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cbst_mx.errors import CBSTError, ConfigError, RunError
from cbst_mx.files import atomic_folder, write_json
from cbst_mx.label_space import LabelSpace
from cbst_mx.networks.forms import folded, network_graph, to_block
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import gluon, mx

__all__ = ["ONNX", "TOLERANCE", "Exported", "export_network"]

TOLERANCE = 1e-4  # largest difference of a logit, as a share of the largest logit
_OUTPUT = "logits"
# What the extra onnx installs: setup.py reads this line. From 1.19 on onnx lacks a module that mxnet 1.9.1 imports.
ONNX = ["onnx>=1.14,<1.19", "onnxruntime>=1.15"]
# Versions of the format and of the operators in a file: those of which mxnet 1.9.1 writes nodes. It states the newest
# that the installed onnx knows, which a runtime that is a little older refuses.
_FORMAT, _OPERATORS = 7, 13
_INSTALL = f"pip install 'cbst_mx[onnx]' (or {' '.join(map(repr, ONNX))})"


class Exported(NamedTuple):
    """Files of an export and how near they come to the network.

    Attributes
    ----------
    files : list of Path
        The files in the folder.
    symbol_difference : float
        Largest absolute difference between the logits of the symbol read back and those of the network.
    onnx_difference : float or None
        The same for the ONNX file in onnxruntime; None without ONNX file or without onnxruntime.
    folded : int
        Batch norms put into convolutions.
    """

    files: list[Path]
    symbol_difference: float
    onnx_difference: float | None
    folded: int


def export_network(
    network: gluon.HybridBlock,
    out: Path,
    spec: NetworkSpec,
    label_space: LabelSpace,
    *,
    onnx: bool = False,
    size: tuple[int, int] | None = None,
    fold: bool = False,
) -> Exported:
    """Write a network to a new folder, all of it or nothing.

    The folder holds NAME-symbol.json and NAME-0000.params (``gluon.SymbolBlock.imports`` reads them), NAME.json with
    the input's normalisation and the classes, and with `onnx` NAME.onnx; NAME is the network's.

    Parameters
    ----------
    network : HybridBlock
        With its parameters on the CPU.
    out : Path
        Folder to make; it must not exist or be empty.
    spec : NetworkSpec
        What `network` was built from.
    label_space : LabelSpace
        The meaning of its classes.
    onnx : bool
        Write an ONNX file too.
    size : (int, int), optional
        Height and width of the ONNX file's input, with a batch of 1; without it batch, height and width are free.
    fold : bool
        Put batch norms into convolutions first.

    Raises
    ------
    ConfigError
        If `size` is not allowed or onnx is not installed.
    CBSTError
        If an operator has no ONNX form, or a file read back gives other logits.
    RunError
        If `out` is not empty or cannot be written.
    """
    out = Path(out)
    if size is not None and min(size) < network.smallest:
        raise ConfigError(
            f"size must be at least {network.smallest} x {network.smallest} pixels, got {size[0]} x {size[1]}"
        )
    if onnx:
        _check_onnx()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} must be a new or empty folder, but it already holds something")
    ctx = mx.cpu()
    block, count = folded(network, ctx) if fold else (to_block(network_graph(network), network.collect_params()), 0)
    shapes = [(1, 3, *size)] if size else [(1, 3, 64, 96), (2, 3, 37, 45)]
    rng = np.random.default_rng(0)
    checks = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    expected = [network(mx.nd.array(images, ctx=ctx)).asnumpy() for images in checks]
    with atomic_folder(out, durable=True, new=True) as partial:
        path = str(partial / spec.name)
        block.hybridize()
        block(mx.nd.array(checks[0], ctx=ctx))
        again = _write_symbol(block, path, ctx)
        results = [again(mx.nd.array(images, ctx=ctx)).asnumpy() for images in checks]
        symbol_difference = _difference(results, expected, f"{spec.name}-symbol.json in MXNet")
        description = _description(spec, label_space)
        write_json(Path(f"{path}.json"), description)
        onnx_difference = None
        if onnx:
            _write_onnx(path, shapes[0], size is None, description)
            onnx_difference = _run_onnx(f"{path}.onnx", checks, expected)
    return Exported(sorted(out.iterdir()), symbol_difference, onnx_difference, count)


def _write_symbol(block: gluon.SymbolBlock, path: str, ctx: mx.Context) -> gluon.SymbolBlock:
    """Write symbol and parameters of `block` and return what they give when read back."""
    try:
        block.export(path)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Cannot decide type", category=UserWarning
            )  # until the first call
            return gluon.SymbolBlock.imports(f"{path}-symbol.json", ["data"], f"{path}-0000.params", ctx=ctx)
    except (mx.MXNetError, UnicodeDecodeError) as error:
        # a small file on a full disk is reported as written by MXNet: only reading it back tells
        raise OSError(errno.ENOSPC, "MXNet could not write the whole file") from error


def _description(spec: NetworkSpec, label_space: LabelSpace) -> dict[str, Any]:
    return {
        "network": {"name": spec.name, "options": spec.options},
        "input": {
            "name": "data",
            "shape": ["batch", 3, "height", "width"],
            "dtype": "float32",
            "values": "RGB in [0, 1], then (value - mean) / std",
            **({"same_as": spec.input_text()} if all(value == 1 / 255 for value in spec.std) else {}),
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "output": {"name": _OUTPUT, "values": "one logit per class; softmax over axis 1 gives probabilities"},
        "classes": list(label_space.names),
    }


def _check_onnx() -> None:
    try:
        version = metadata.version("onnx")
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"the ONNX export needs the package onnx, which is not installed: {_INSTALL}") from error
    first, end = re.findall(r"\d+\.\d+", ONNX[0])
    if not _release(first) <= _release(version) < _release(end):
        raise ConfigError(
            f"the ONNX export of mxnet 1.9.1 works with onnx from {first} to below {end}, this is {version}: {_INSTALL}"
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _write_onnx(path: str, shape: tuple[int, ...], free: bool, description: dict[str, Any]) -> None:
    """Turn the symbol and parameters at `path` into ``path.onnx``."""
    import onnx

    free_sizes = {"dynamic": True, "dynamic_input_shapes": [("batch", 3, "height", "width")]} if free else {}
    try:
        mx.onnx.export_model(
            f"{path}-symbol.json",
            f"{path}-0000.params",
            in_shapes=[shape],
            in_types=np.float32,
            onnx_file_path=f"{path}.onnx",
            **free_sizes,
        )
    except (AttributeError, NotImplementedError) as error:  # how MXNet says that an operator has no translation
        raise CBSTError(f"the network has no ONNX form: {error}") from error
    model = onnx.load(f"{path}.onnx")
    # weights listed as inputs could be replaced by the caller, which keeps runtimes from preparing them
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    # the last operator's name counts the networks built in this process
    (output,) = model.graph.output
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [_OUTPUT if name == output.name else name for name in names]
    output.name = _OUTPUT
    texts = {"classes": ",".join(description["classes"]), "values": description["input"]["values"]}
    texts.update({key: ",".join(map(str, description["input"][key])) for key in ("mean", "std")})
    onnx.helper.set_model_props(model, texts)
    model.ir_version = _FORMAT
    model.opset_import[0].version = _OPERATORS
    onnx.checker.check_model(model)
    onnx.save(model, f"{path}.onnx")


def _run_onnx(path: str, checks: list[np.ndarray], expected: list[np.ndarray]) -> float | None:
    """Run the file at `path` in onnxruntime, where that is installed, and return the largest difference."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = [session.run([_OUTPUT], {"data": images})[0] for images in checks]
    return _difference(results, expected, f"{Path(path).name} in onnxruntime")


def _difference(results: list[np.ndarray], expected: list[np.ndarray], what: str) -> float:
    """Return the largest absolute difference, and refuse one that is no rounding."""
    largest = 0.0
    for got, wanted in zip(results, expected):
        difference = float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")
        if not difference <= TOLERANCE * float(np.abs(wanted).max()):
            raise CBSTError(
                f"nothing exported: the logits of {what} differ by {difference:.3g} from the network's, "
                f"whose largest is {np.abs(wanted).max():.3g}"
            )
        largest = max(largest, difference)
    return largest
