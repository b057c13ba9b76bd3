"""Every `raise` of the package: errors of ours, or explained here. What else a reader raises, tests/fuzz looks for."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Iterator

from cbst_mx import errors

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "cbst_mx").rglob("*.py"), *(ROOT / "symbols").rglob("*.py")])
OWN = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.CBSTError)}

VALIDATOR = "validators of pydantic: strict_yaml makes one sentence of every ValueError in them"
WRAPPED = "the reader that calls it makes one sentence of it"
SYSTEM = "an OSError like the system's own: atomic_path and the readers make one sentence of it, and the command line"
STARTUP = "of the installation or the program, not of data"
CODE = "an argument that a network was written with: build_network makes one sentence of it"
CLICK = "click's own, for its exit codes"

#: (module, function): why no data can make it cross the command line.
EXPLAINED = {
    ("cbst_mx/__init__.py", "__getattr__"): "asked for by Python itself",
    ("cbst_mx/data/description.py", "*"): VALIDATOR,
    ("cbst_mx/config/*", "*"): VALIDATOR,
    ("cbst_mx/cluster/kvstore.py", "_Attempt._ask"): "_Attempt.run gives its sentence, and all begin again",
    ("cbst_mx/cluster/kvstore.py", "_Attempt.run"): "the StoppedError that was caught in _Attempt._take",
    ("cbst_mx/cluster/kvstore.py", "_Attempt._watch"): "as of _Attempt.run",
    ("cbst_mx/cluster/kvstore.py", "_Attempt._take"): "an error of ours that a process has told",
    ("cbst_mx/data/label_files.py", "check_below_root"): VALIDATOR + "; LabelPaths.of does so itself",
    ("cbst_mx/data/label_files.py", "check_pattern"): VALIDATOR,
    ("cbst_mx/data/label_files.py", "check_expression"): VALIDATOR,
    ("cbst_mx/data/label_files.py", "_choices"): VALIDATOR,
    ("cbst_mx/data/listing.py", "matching_images"): "find_images makes one sentence of it; the other patterns are ours",
    ("cbst_mx/data/image_files.py", "*"): WRAPPED,
    ("cbst_mx/data/image_headers.py", "*"): WRAPPED,
    ("cbst_mx/data/jpeg_parts.py", "*"): WRAPPED,
    ("cbst_mx/data/png_parts.py", "*"): WRAPPED,
    ("cbst_mx/data/png_pixels.py", "Rows._down_to"): "the data were right when they were unpacked: memory is short",
    ("cbst_mx/files/reading.py", "_whole_number"): WRAPPED,
    ("cbst_mx/files/reading.py", "_finite_number"): WRAPPED,
    ("cbst_mx/files/reading.py", "check_archive"): WRAPPED,
    ("cbst_mx/run_dir/links.py", "below"): WRAPPED,
    (
        "cbst_mx/data/loader.py",
        "BatchLoader._sample",
    ): "a fault of the program: faults of data are a DataError above it",
    ("cbst_mx/files/__init__.py", "atomic_folder"): SYSTEM,
    ("cbst_mx/files/__init__.py", "unpack_names"): WRAPPED,
    ("cbst_mx/files/reading.py", "read_bounded"): SYSTEM,
    ("cbst_mx/files/reading.py", "read_json"): "caught in the same function, which makes one sentence of it",
    ("cbst_mx/files/reading.py", "check_end"): SYSTEM,
    ("cbst_mx/files/reading.py", "array_header"): WRAPPED,
    ("cbst_mx/files/reading.py", "_check_members"): WRAPPED,
    ("cbst_mx/files/reading.py", "open_npz"): WRAPPED,
    ("cbst_mx/labelling/job.py", "_count"): "an error of ours that a block of images gave back",
    ("cbst_mx/labelling/map_files.py", "*"): WRAPPED,
    ("cbst_mx/labelling/results.py", "*"): "a damaged record is made again",
    ("cbst_mx/labelling/state.py", "State._from_arrays"): WRAPPED,
    ("cbst_mx/networks/export.py", "_write_symbol"): SYSTEM,
    ("cbst_mx/networks/onnx_files.py", "load_onnx"): "caught in the same function, which makes one sentence of it",
    ("cbst_mx/networks/parameters.py", "_write_arrays"): SYSTEM,
    ("cbst_mx/networks/sidecars.py", "read_sidecar"): WRAPPED,
    ("cbst_mx/networks/sidecars.py", "_parse_label_space"): WRAPPED,
    ("cbst_mx/networks/spec.py", "NetworkSpec.from_json"): WRAPPED,
    ("cbst_mx/networks/params_files.py", "*"): WRAPPED,
    ("cbst_mx/networks/torch_files.py", "*"): WRAPPED,
    ("cbst_mx/rounds/health.py", "Health.check"): "Run does the step again after a rollback, or says why there is none",
    ("cbst_mx/rounds/health.py", "Health.watch"): "as of Health.check",
    ("cbst_mx/run_dir/ledger.py", "Entry.from_line"): WRAPPED,
    ("cbst_mx/run_dir/ledger.py", "Ledger._read"): "Ledger.__init__ makes one sentence of it",
    ("cbst_mx/run_dir/lock.py", "_acquire"): "lock_folder makes one sentence of it",
    ("cbst_mx/selftrain/counting.py", "StreamingThresholds.from_arrays"): WRAPPED,
    ("cbst_mx/selftrain/matlab_files.py", "*"): WRAPPED,
    ("cbst_mx/selftrain/prior_files.py", "read"): WRAPPED,
    ("cbst_mx/strict_yaml.py", "*"): "errors of YAML, of which read_yaml and parse_value make one sentence",
    ("cbst_mx/cli/*", "*"): CLICK,
    ("symbols/__init__.py", "get_network"): CODE,
    ("symbols/blocks.py", "*"): CODE,
    ("symbols/backend.py", "*"): STARTUP,
}


def raises(
    tree: ast.AST, function: str = "", bound: tuple[tuple[str, str], ...] = ()
) -> Iterator[tuple[int, str, str]]:
    """Yield line, function and name of every error raised; of a name that an ``except`` binds, what that catches."""
    for node in ast.iter_child_nodes(tree):
        inside, names = function, bound
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            inside = f"{function}.{node.name}" if function else node.name
        if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = (*bound, *((node.name, name_of(error)) for error in caught))
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = name_of(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            choices = [name]
            if isinstance(node.exc, ast.IfExp):
                choices = [name_of(getattr(part, "func", part)) for part in (node.exc.body, node.exc.orelse)]
            for choice in choices:
                caught_as = [error for bound_name, error in bound if bound_name == choice]
                for error in caught_as or [choice]:
                    yield node.lineno, function, error
        yield from raises(node, inside, names)


def name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"


def explained(module: str, function: str) -> tuple[str, str] | None:
    folder = module.rpartition("/")[0] + "/*"
    keys = ((module, function), (module, function.partition(".")[0]), (module, "*"), (folder, "*"))
    return next((key for key in keys if key in EXPLAINED), None)


def test_only_our_own_errors_are_raised_where_data_can_reach():
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    own, makers = set(OWN), set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and own.intersection(map(name_of, node.bases)):
                own.add(node.name)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.returns is not None and name_of(node.returns) in own:
                makers.add(node.name)  # functions that return an error of ours
    accepted = own | makers | {"error_type"}  # of files.reading, a CBSTError
    found, used = [], set()
    for module, tree in trees.items():
        for line, function, error in raises(tree):
            if error in accepted:
                continue
            key = explained(module, function)
            if key is None:
                found.append(f"{module}:{line} {function} raises {error}")
            used.add(key)
    assert not found, "\n".join(found)
    stale = set(EXPLAINED) - used
    assert not stale, f"no longer there: {sorted(stale)}"


def test_errors_of_ours_have_one_base():
    assert len(OWN) >= 7
    assert all(issubclass(getattr(errors, name), errors.CBSTError) for name in OWN)


def test_the_walk_sees_what_it_is_for():
    code = """
def f():
    raise ValueError("x")
class A:
    def g(self):
        try:
            pass
        except (KeyError, DataError) as error:
            raise error if 1 else make()
        raise
"""
    assert [(function, error) for _, function, error in raises(ast.parse(code))] == [
        ("f", "ValueError"), ("A.g", "KeyError"), ("A.g", "DataError"), ("A.g", "make"),
    ]  # fmt: skip
