"""What the benchmarks conclude from their figures: lines through times, and what is called a regression."""

from __future__ import annotations

import importlib

import pytest

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
