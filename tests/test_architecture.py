"""The rules of the source tree: who imports whom, who may print, and what works without mxnet."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Bottom first. A module may import its own layer and those below.
LAYERS = (
    ("cbst_mx",),
    ("cbst_mx.errors",),
    ("cbst_mx.files", "cbst_mx.messages", "cbst_mx.strict_yaml"),
    ("cbst_mx.cluster",),  # who has work to share knows `messages.Shares` only
    ("cbst_mx.label_space",),
    ("cbst_mx.seeding",),
    ("cbst_mx.data",),
    ("cbst_mx.networks",),
    ("cbst_mx.config",),
    ("cbst_mx.run_dir",),
    ("cbst_mx.selftrain",),
    ("cbst_mx.labelling",),
    ("cbst_mx.training",),
    ("cbst_mx.evaluation",),
    ("cbst_mx.rounds",),
    ("cbst_mx.planning",),
    ("cbst_mx.report",),
    ("cbst_mx.demo",),
    ("cbst_mx.cli",),
)
# These see the config; every other module takes explicit keyword arguments. Those of evaluation read the experiment
# of a run folder back.
ORCHESTRATORS = (
    "cbst_mx.config",
    "cbst_mx.rounds",
    "cbst_mx.planning",
    "cbst_mx.demo",
    "cbst_mx.cli",
    "cbst_mx.evaluation.run_experiment",
    "cbst_mx.evaluation.run_results",
    "cbst_mx.evaluation.run_settings",
    "cbst_mx.evaluation.paper_check",
)
# These need mxnet; every other module of cbst_mx imports without it (cli imports it inside its commands).
ON_MXNET = (
    "cbst_mx.networks.devices",
    "cbst_mx.networks.build",
    "cbst_mx.networks.parameters",
    "cbst_mx.networks.matching",
    "cbst_mx.networks.weights",
    "cbst_mx.networks.forms",
    "cbst_mx.networks.int8",
    "cbst_mx.networks.inputs",
    "cbst_mx.networks.export",
    "cbst_mx.networks.onnx_files",
    "cbst_mx.training",
    "cbst_mx.selftrain.kc",
    "cbst_mx.selftrain.network_maps",
    "cbst_mx.selftrain.on_device",
    "cbst_mx.selftrain.target_maps",
    "cbst_mx.evaluation.predictor",
    "cbst_mx.evaluation.evaluate",
    "cbst_mx.evaluation.label_free",
    "cbst_mx.evaluation.shared",
    "cbst_mx.rounds",
    "cbst_mx.planning",
    "cbst_mx.demo",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_tree(*folders):
    """Return module name to syntax tree of every file in `folders`."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(file): ast.parse(file.read_text("utf-8"), str(file)) for file in files}


MODULES = read_tree("cbst_mx", "symbols")
SCRIPTS = read_tree("tools")


def is_below(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def statements(tree, at_import):
    """Yield every node; `at_import` leaves out what runs later (functions) or never (TYPE_CHECKING)."""
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from statements(node, at_import)


def imports(tree, modules, at_import=False):
    """Return the full names `tree` imports; of ``from package import name`` the module, where `name` is one."""
    found = set()
    for node in statements(tree, at_import):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this tree"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in modules else node.module)
    return found


def closure(name, modules):
    """Return everything that importing the module `name` imports, packages of submodules included."""
    seen, queue = set(), [name]
    while queue:
        current = queue.pop()
        while current:
            if current not in seen:
                seen.add(current)
                if current in modules:
                    queue.extend(imports(modules[current], modules, at_import=True))
            current = current.rpartition(".")[0]
    return seen


def layer(name):
    # the bare package is a layer of its own, not the parent of all others
    found = [i for i, packages in enumerate(LAYERS) if name == "cbst_mx" and i == 0 or i and is_below(name, packages)]
    assert len(found) == 1, f"{name} has no place in LAYERS"
    return found[0]


def upward_imports(modules):
    return [
        f"{name} imports {target}"
        for name, tree in modules.items()
        if is_below(name, ["cbst_mx"])
        for target in sorted(imports(tree, modules))
        if is_below(target, ["cbst_mx"]) and layer(target) > layer(name)
    ]


def cycles(modules):
    """Return the modules that import themselves through others."""
    direct = {name: imports(tree, modules) & set(modules) for name, tree in modules.items()}

    def reachable(start):
        seen, queue = set(), list(direct[start])
        while queue:
            name = queue.pop()
            if name not in seen:
                seen.add(name)
                queue.extend(direct[name])
        return seen

    return [name for name in modules if name in reachable(name)]


def speaks(tree):
    """Return the lines that print, exit or write to the terminal."""
    forbidden = {
        "print", "exit", "quit", "SystemExit", "breakpoint", "sys.exit", "os._exit", "sys.stdout", "sys.stderr",
        "click.echo", "click.secho", "rich.print",
    }  # fmt: skip
    names = (node for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute)))
    found = [f"line {node.lineno}: {ast_name(node)}" for node in names if ast_name(node) in forbidden]
    return found + [f"imports {name}" for name in imports(tree, MODULES) if is_below(name, ["click", "rich.console"])]


def ast_name(node):
    if isinstance(node, ast.Attribute):
        return f"{ast_name(node.value)}.{node.attr}"
    return getattr(node, "id", "")


def config_parameters(tree):
    """Return the functions that take a parameter called config or experiment."""
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for argument in (
            *node.args.posonlyargs,
            *node.args.args,
            *node.args.kwonlyargs,
            node.args.vararg,
            node.args.kwarg,
        )
        if argument is not None and argument.arg in ("config", "experiment")
    ]


# ---------------------------------------------------------------------------------------------------------- the tree


def test_the_walk_sees_the_tree():
    assert {"cbst_mx.data.gta5", "cbst_mx.selftrain.kc", "symbols.fcn8s"} <= set(MODULES)
    below_rounds = {
        target for target in imports(MODULES["cbst_mx.rounds.run"], MODULES) if is_below(target, ["cbst_mx"])
    }
    assert len(below_rounds) > 8
    assert "cbst_mx.rounds.opening" in below_rounds


def test_imports_point_downwards():
    assert upward_imports(MODULES) == []


def test_no_module_imports_itself_through_others():
    assert cycles(MODULES) == []


def test_symbols_knows_nothing_of_cbst_mx():
    for name, tree in MODULES.items():
        if is_below(name, ["symbols"]):
            assert not [target for target in imports(tree, MODULES) if is_below(target, ["cbst_mx"])], name


def test_one_place_imports_mxnet_and_none_gluoncv_at_start():
    importers = [name for name, tree in MODULES.items() if any(is_below(t, ["mxnet"]) for t in imports(tree, MODULES))]
    assert importers == ["symbols.backend"]
    for name, tree in MODULES.items():
        assert not any(is_below(t, ["gluoncv"]) for t in imports(tree, MODULES, at_import=True)), name


def test_only_the_command_line_prints_and_exits():
    assert speaks(MODULES["cbst_mx.cli.base"])
    for name, tree in MODULES.items():
        assert is_below(name, ["cbst_mx.cli"]) or speaks(tree) == [], name


def test_the_config_stops_at_the_orchestrators():
    assert config_parameters(MODULES["cbst_mx.rounds.run"])
    for name, tree in MODULES.items():
        if not is_below(name, ORCHESTRATORS):
            assert config_parameters(tree) == [], name
            assert not any(is_below(target, ["cbst_mx.config"]) for target in imports(tree, MODULES)), name


# Functions of `os` that read, and `shutil`'s; every other one that takes a path changes a disk.
_CHANGING = {
    *("os.open", "os.write", "os.pwrite", "os.replace", "os.rename", "os.mkdir", "os.makedirs", "os.unlink"),
    *("os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.ftruncate", "os.fsync"),
    *("np.save", "np.savez", "np.savez_compressed", "np.savetxt", "mx.nd.save", "onnx.save", "cv2.imwrite"),
    *("logging.FileHandler", "tempfile.TemporaryDirectory", "tempfile.NamedTemporaryFile", "tempfile.mkdtemp"),
}
_METHODS = {
    *("write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "rename", "symlink_to", "hardlink_to"),
    *("link_to", "tofile", "memmap"),
}
# Where a disk is changed beside `cbst_mx.files`, and why.
CHANGES_A_DISK = {
    ("cbst_mx.run_dir.lock", "os.open"): "the lock, which is no file of the run",
    ("cbst_mx.run_dir.lock", "os.ftruncate"): "the lock",
    ("cbst_mx.run_dir.lock", "os.pwrite"): "the lock",
    ("cbst_mx.run_dir.lock", "unlink"): "the lock",
    ("cbst_mx.run_dir.log", "logging.FileHandler"): "the log, which grows line by line",
    ("cbst_mx.networks.parameters", "mx.nd.save"): "writes a temporary path of ours",
    ("cbst_mx.networks.export", "onnx.save"): "writes a temporary path of ours",
    ("cbst_mx.evaluation.server_export", "zipfile.ZipFile"): "writes a temporary path of ours",
    ("cbst_mx.planning.work", "tempfile.TemporaryDirectory"): "measures, and keeps nothing",
    ("cbst_mx.planning.agreement", "tempfile.TemporaryDirectory"): "compares, and keeps nothing",
    ("cbst_mx.planning.measure", "write_text"): "to the kernel, which forgets the peak of the memory",
    ("cbst_mx.cli.stopping", "os.write"): "to the terminal",
}


def disk_calls(tree):
    """Yield what of a module changes a disk by itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (ast_name(base) for base in node.bases if ast_name(base) in _CHANGING)
        if not isinstance(node, ast.Call):
            continue
        name, method = ast_name(node.func), node.func.attr if isinstance(node.func, ast.Attribute) else ""
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        writes = any(re.fullmatch("[wax]b?t?|r?b?[+]b?", mode) for mode in modes)
        if name in _CHANGING or name.startswith("shutil.") and name != "shutil.disk_usage":
            yield name
        elif method in _METHODS or (method == "replace" and len(node.args) == 1 and not node.keywords):
            yield method
        elif writes and (name in ("open", "io.open", "zipfile.ZipFile") or method == "open" and name != "members.open"):
            yield name


def test_one_place_changes_a_disk():
    assert len(set(disk_calls(MODULES["cbst_mx.files"]))) > 8
    found = {(name, call) for name, tree in MODULES.items() for call in disk_calls(tree)}
    others = {(name, call) for name, call in found if name != "cbst_mx.files"}
    assert others == set(CHANGES_A_DISK)


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'wb')", "path.open(mode='a')", "np.save(path, array)", "shutil.copy(a, b)", "path.unlink()",
        "temporary.replace(path)", "os.rename(a, b)", "class A(logging.FileHandler): pass", "path.write_text(text)",
    ],
)  # fmt: skip
def test_changes_of_a_disk_are_seen(source):
    assert list(disk_calls(ast.parse(source)))


# A new one should take the place of another. The 22nd room is the cluster, with one way in, from the command line, and
# five out: its version, errors, files, messages and strict YAML.
MOST_ROOMS, MOST_EDGES = 22, 126


def rooms(modules):
    """Return packages and modules side by side, and the pairs of them of which the first imports the second."""

    def room(name):
        parts = name.split(".")
        return ".".join(parts[: 1 if parts[0] == "symbols" else 2])

    imported = {(room(name), room(target)) for name in modules for target in imports(modules[name], modules)}
    inside = {room(name) for name in modules}
    return inside, {(one, other) for one, other in imported if one != other and other in inside}


def test_few_rooms_and_few_ways_between_them():
    inside, edges = rooms(MODULES)
    assert {"cbst_mx.selftrain", "symbols"} <= inside
    assert ("cbst_mx.selftrain", "symbols") in edges
    assert len(inside) <= MOST_ROOMS
    assert len(edges) <= MOST_EDGES


def compared_arrays(tree):
    """Return the dataclasses that hold arrays and compare them by value: ``==`` raises there."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        made = [text for text in map(ast.dump, node.decorator_list) if "'dataclass'" in text]
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        arrays = [f for f in fields if "'ndarray'" in ast.dump(f.annotation) and "arg='compare'" not in ast.dump(f)]
        if made and arrays and "arg='eq'" not in made[0]:
            found.append(node.name)
    return found


def test_dataclasses_of_arrays_are_not_compared_by_value():
    for name, tree in MODULES.items():
        assert compared_arrays(tree) == [], name


def test_nobody_imports_tools_or_experiments():
    for name, tree in {**MODULES, **read_tree("tests")}.items():
        found = {target for target in imports(tree, SCRIPTS) if is_below(target, ["tools", "experiments"])}
        assert found <= ({"tools.environment"} if name in ("tests.test_environment", "tests.test_packaging") else set())


LONGEST_MODULE, LONGEST_FUNCTION = 450, 60  # lines; of code, without docstring and comments, in a function
LONG_MODULES = {"cbst_mx.selftrain.counting"}  # one class, one idea


def code_lines(node, lines):
    """Return the lines of a function that are neither empty, comment nor docstring."""
    skipped = set()
    if ast.get_docstring(node) is not None:
        skipped = set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return [
        number
        for number in range(node.lineno, node.end_lineno + 1)
        if number not in skipped and lines[number - 1].strip() and not lines[number - 1].strip().startswith("#")
    ]


def test_modules_and_functions_are_short_or_say_why_not():
    for folder in ("cbst_mx", "symbols", "tools"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            lines = file.read_text("utf-8").splitlines()
            bench = "bench" in file.parts
            assert bench or len(lines) <= LONGEST_MODULE or module_name(file) in LONG_MODULES, (file, len(lines))
            for node in ast.walk(ast.parse("\n".join(lines))):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    count = len(code_lines(node, lines))
                    reason = "Longer than other functions:" in (ast.get_docstring(node) or "")
                    assert bench or count <= LONGEST_FUNCTION or reason, (file, node.name, count)


def test_the_run_reads_as_the_list_of_its_stages():
    assert len((ROOT / "cbst_mx" / "rounds" / "run.py").read_text("utf-8").splitlines()) < 300


# --------------------------------------------------------------------------------------------------- without mxnet


PURE = [name for name in MODULES if is_below(name, ["cbst_mx"]) and not is_below(name, ON_MXNET)]


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_reach_no_mxnet(name):
    assert not [target for target in closure(name, MODULES) if is_below(target, ["mxnet", "gluoncv", "symbols"])]


def test_modules_on_mxnet_reach_it():
    # else the list above would be too long, or the closure blind
    for name in (name for name in MODULES if is_below(name, ON_MXNET) and name != "cbst_mx.training"):
        if name != "cbst_mx.training.samples":
            assert "mxnet" in closure(name, MODULES), name


def test_the_command_starts_without_heavy_packages():
    # --help and shell completion wait for these imports: 0.1 s instead of 0.6 s
    heavy = ["mxnet", "numpy", "cv2", "scipy", "pydantic", "yaml"]
    assert not [target for target in closure("cbst_mx.cli", MODULES) if is_below(target, heavy)]
    assert "numpy" in closure("cbst_mx.selftrain", MODULES)  # the closure sees it where it is


def test_pure_modules_import_where_mxnet_cannot():
    code = f"""
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mxnet", "gluoncv"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
for name in {PURE!r}:
    importlib.import_module(name)
try:
    importlib.import_module("cbst_mx.networks.build")
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "blocked: mxnet" in result.stdout  # the blocker works


# --------------------------------------------------------------------------------------- the rules catch violations


def tree_of(**sources):
    return {name.replace("__", "."): ast.parse(source) for name, source in sources.items()}


def test_an_upward_import_is_found_even_inside_a_function():
    modules = tree_of(cbst_mx__errors="def f():\n from cbst_mx import rounds", cbst_mx__rounds="import cbst_mx.errors")
    assert upward_imports(modules) == ["cbst_mx.errors imports cbst_mx.rounds"]
    assert cycles(modules) == ["cbst_mx.errors", "cbst_mx.rounds"]


def test_a_module_without_a_layer_is_refused():
    with pytest.raises(AssertionError, match="cbst_mx.new has no place"):
        layer("cbst_mx.new")


def test_mxnet_is_found_through_packages_but_not_in_functions():
    modules = tree_of(a="from b.c import x", b="import mxnet.gluon", b__c="", d="def f():\n import mxnet")
    assert "mxnet" in closure("a", modules)
    assert "mxnet" not in closure("d", modules)


@pytest.mark.parametrize(
    "source",
    ["print(1)", "import sys\nsys.exit()", "raise SystemExit(1)", "import click", "import sys\nsys.stderr.write('')"],
)
def test_speaking_is_found(source):
    assert speaks(ast.parse(source))


@pytest.mark.parametrize(
    ("decorator", "field", "found"),
    [
        ("@dataclass", "x: np.ndarray", ["A"]),
        ("@dataclasses.dataclass(frozen=True)", "x: dict[str, np.ndarray]", ["A"]),
        ("@dataclass(frozen=True, eq=False)", "x: np.ndarray", []),
        ("@dataclass", "x: np.ndarray = field(compare=False)", []),
        ("@dataclass", "x: int", []),
    ],
)
def test_arrays_compared_by_value_are_found(decorator, field, found):
    assert compared_arrays(ast.parse(f"{decorator}\nclass A:\n {field}")) == found


@pytest.mark.parametrize("source", ["def f(config): pass", "class A:\n def f(self, *, experiment=None): pass"])
def test_config_parameters_are_found(source):
    assert config_parameters(ast.parse(source)) == ["f"]
