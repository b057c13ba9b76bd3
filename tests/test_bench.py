"""How the benchmarks are run, and what they conclude from their figures: lines through times, what is a regression."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys

import pytest

from symbols import get_network
from symbols.backend import mx
from tests.test_architecture import ROOT


@pytest.fixture
def bench(monkeypatch):
    """Import a script of tools/bench, which limits the threads of the process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "bench"))
    return importlib.import_module


def test_a_line_through_times_is_found(bench):
    once, each = bench("growth").line({100: 1.5, 300: 3.5, 1000: 10.5})
    assert (once, each) == pytest.approx((0.5, 0.01))


def test_more_is_a_regression_only_beside_the_same_kind_of_processor(bench):
    compared = bench("regressions").compared
    found = {"evaluation": {"time": 2.0, "memory": 300.0}}
    before = {"evaluation": {"time": 1.5, "memory": 290.0}}
    assert compared(found, before, "AVX2").endswith("evaluation takes 33 % more time than regressions.json says")
    assert compared(found, found, "AVX2").endswith("no part takes over 25 % more than before, AVX2")
    unknown = compared(found, None, "AVX2, AVX-512")
    assert unknown.endswith("has no processor with AVX2, AVX-512; --update adds this one")


def test_a_cluster_that_costs_too_much_is_an_error(bench):
    check = bench("cluster").check
    check(1.3)
    for ratio in (1.31, float("nan")):
        with pytest.raises(SystemExit, match=rf"at most 1\.3 times the .* of one process, took {ratio}"):
            check(ratio)


HELPERS = {"measuring", "torch_round", "label_free_score"}  # what the others share, and what needs run folders


def test_every_benchmark_runs_with_options_that_it_has(bench):
    benches = bench("measuring").BENCHES
    folder = ROOT / "tools" / "bench"
    assert {name.split()[0] for name in benches} == {path.stem for path in folder.glob("*.py")} - HELPERS
    for name, one in benches.items():
        text = (folder / f"{name.split()[0]}.py").read_text("utf-8")
        assert (one.torch, bool(one.full)) == ("    add_torch(" in text, "    add_full(" in text), name
        assert not one.page or ('"--out"' in text and (ROOT / one.page).is_file()), name


def test_commands_of_pages_are_benchmarks_with_options_that_they_have(bench):
    benches = bench("measuring").BENCHES
    commands = [
        dict(part.partition("=")[::2] for part in shlex.split(one)[2:])
        for page in sorted((ROOT / "docs").glob("*.md"))
        for one in re.findall(r"make bench (?:[A-Z]+=(?:\"[^\"]*\"|[^\s`\"]+) ?)+", page.read_text("utf-8"))
    ]
    assert len(commands) > 10
    for given in commands:
        for script in given.get("ONLY", "").split():
            named = [one for name, one in benches.items() if name.split()[0] == script]
            assert named, given
            assert "FULL" not in given or any(one.full for one in named), given
            assert "WRITE" not in given or any(one.page for one in named), given
            source = (ROOT / "tools" / "bench" / f"{script}.py").read_text("utf-8")
            for option in re.findall(r"--[a-z-]+", given.get("BENCH", "")):
                assert f'"{option}"' in source, given


def test_the_short_way_is_said_to_end_within_40_minutes(bench):
    benches = bench("measuring").BENCHES.values()
    assert sum(one.minutes for one in benches) <= 40
    assert all(one.full is None or one.full > one.minutes for one in benches)


def run(measuring, monkeypatch, capsys, *words, code=lambda script: 0):
    """Return the commands of the benchmarks, what is printed, and the error."""
    called, error = [], None
    monkeypatch.setattr(sys, "argv", ["measuring.py", *words])
    monkeypatch.setattr(
        measuring.subprocess, "call", lambda command, cwd, env: called.append(command[1:]) or code(command[1])
    )
    try:
        measuring.main()
    except SystemExit as end:
        error = str(end)
    return called, capsys.readouterr().out, error


def test_benchmarks_get_their_peer_and_their_page_and_what_is_unknown(bench, monkeypatch, capsys):
    words = ("--only", "networks", "street_scenes", "rounds", "--write", "--repeats", "2")
    called, said, error = run(bench("measuring"), monkeypatch, capsys, *words)
    assert called == [
        ["tools/bench/street_scenes.py", "--repeats", "2"],
        ["tools/bench/rounds.py", "--install-torch", "--out", "docs/performance.md", "--repeats", "2"],
        ["tools/bench/networks.py", "--install-torch", "--repeats", "2"],  # its page is of the long way
    ]
    assert error is None
    assert said.count("about ") == 1 + len(called)  # all together, and each
    assert "1 more where PyTorch is installed" in said
    words = ("--only", "networks", "street_scenes", "--full", "--torch-python", "/a/python", "--write")
    called, said, _ = run(bench("measuring"), monkeypatch, capsys, *words)
    assert called == [
        ["tools/bench/street_scenes.py"],
        ["tools/bench/networks.py", "--full", "--torch-python", "/a/python", "--out", "docs/benchmarks.md"],
    ]
    assert "installed" not in said


def test_a_benchmark_that_fails_stops_no_other_and_is_named(bench, monkeypatch, capsys):
    words = ("--only", "networks", "street_scenes", "selection")
    called, said, error = run(bench("measuring"), monkeypatch, capsys, *words, code=lambda script: "street" in script)
    assert len(called) == 3
    assert error == "failed: street_scenes"
    assert "| street_scenes | 0 | failed |\n| selection | 0 | ok |\n| networks | 0 | ok |\n" in said


def test_a_table_says_the_command_it_is_of_without_places(bench, monkeypatch):
    words = "/x/tools/bench/images.py --install-torch --out docs/a.md --against /home/me/old --repeats 2 --full"
    monkeypatch.setattr(sys, "argv", words.split())
    assert bench("measuring").asked().startswith("`images.py --against old --repeats 2 --full`, 20")


def test_the_long_way_gives_other_defaults_to_what_is_not_given(bench, monkeypatch):
    for words, wanted in (([], (1, 3)), (["--full"], (5, 8)), (["--steps", "2", "--full"], (5, 2))):
        monkeypatch.setattr(sys, "argv", ["one.py", *words])
        parser = argparse.ArgumentParser()
        parser.add_argument("--repeats", type=int, default=1)
        parser.add_argument("--steps", type=int, default=3)
        bench("measuring").add_full(parser, repeats=5, steps=8)
        options = parser.parse_args()
        assert (options.repeats, options.steps) == wanted


def test_networks_beside_pytorch_are_those_of_one_precision(bench):
    forms = {
        ("mxnet", "float32 fused"): 2.0,
        ("torch", "float32"): 3.0,
        ("torch", "float32 channels last"): 2.5,
        ("mxnet", "bfloat16"): 1.0,
        ("torch", "bfloat16"): float("nan"),
    }
    found = {("fcn8s", *key): {"seconds": seconds, "peak": 2e9} for key, seconds in forms.items()}
    assert bench("networks").rows(found) == [
        ("FCN8s, MXNet float32 fused", "2.00", "2.00", "1.25"),
        ("FCN8s, PyTorch float32", "3.00", "2.00", ""),
        ("FCN8s, PyTorch float32 channels last", "2.50", "2.00", ""),
        ("FCN8s, MXNet bfloat16", "1.00", "2.00", ""),
        ("FCN8s, PyTorch bfloat16", "nan", "2.00", ""),
    ]
    failed = ["training step of FCN8s, PyTorch bfloat16"]  # ends the script with an error, before it writes
    assert bench("networks").unmeasured("training step", found) == failed


def test_operations_of_an_upsampling_are_those_that_are_done(bench):
    counted = {}
    for upsampling in ("frozen", "learned"):
        network = get_network("fcn8s", 19, width=1 / 32, upsampling=upsampling)
        network.initialize(mx.init.Xavier())
        network(mx.nd.zeros((1, 3, 32, 32)))
        counted[upsampling] = bench("pipeline").operations(network, (64, 96))
    # the last one, 16 x 16 weights between each two of 19 classes at 8 x 12 places, or 16 and 16 of each class
    plain, passes = 2 * 19**2 * 16**2 * 8 * 12, 2 * 19 * (16 * 8 * 12 + 16 * 64 * 12)
    assert counted["learned"] - counted["frozen"] > plain - passes > 0
