"""Lines through measurements, and which amounts are measured in the time there is; with work that only counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cbst_mx.planning import measure
from cbst_mx.planning.measure import Peak, Series, Stamp, Timing, between, repeated, sampled
from symbols.backend import mx

MB = 1 << 20


def series(*points, busy=1.0):
    made = Series()
    for amount, seconds, peak in points:
        made.add(amount, Timing([seconds * busy], [seconds]), peak)
    return made


def test_what_is_fixed_is_not_multiplied():
    found = series((0.25, 1.5, 1100 * MB), (1.0, 3.0, 1400 * MB))  # 1 s and 1000 MB, and 2 s and 400 MB for each
    assert found.seconds_at(4) == pytest.approx(1 + 4 * 2)
    assert found.bytes_at(4) == pytest.approx((1000 + 4 * 400) * MB)
    assert found.seconds_at(1.0) == 3.0  # as it was measured
    assert (found.stretch(4), found.stretch(0.5)) == (4, 1)


def test_a_line_that_does_not_fit_is_one_through_nothing():
    assert series((0.5, 3.0, MB), (1.0, 2.0, MB)).seconds_at(2) == 4.0  # more took less
    assert series((0.5, 0.1, MB), (1.0, 2.0, MB)).seconds_at(2) == 4.0  # the line would begin below 0
    assert series((0.5, 1.0, MB)).seconds_at(2) == 4.0
    assert series((0.5, 1.0, 5 * MB), (1.0, 2.0, 4 * MB)).bytes_at(2) == 5 * MB  # never less than was measured


def test_the_least_time_counts_and_that_of_the_processor_where_others_were_in_the_way():
    found = Series()
    found.add(1.0, Timing([3.0, 2.0, 9.0], [1.2, 1.1, 1.3]), MB)
    assert found.seconds == [1.1]
    assert found.busy == pytest.approx(3.0 / 1.1)
    found.add(2.0, Timing([2.0, 2.1], [3.9, 4.0]), MB)  # two threads on two cores
    assert found.seconds == [1.1, 2.0]


@pytest.mark.parametrize(
    ("cost", "budget", "measured"),
    [
        (0.001, 100.0, [0.25, 8]),  # all of it fits: nothing is left to extrapolate
        (1.0, 8.0, [0.25, 2]),
        (5.0, 10.0, [0.25, 1]),  # may take up to twice the time
        (30.0, 10.0, [0.25, 0.5]),  # a line needs two
    ],
)
def test_the_largest_amount_that_fits_is_measured(monkeypatch, cost, budget, measured):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def take(amount, left):
        clock[0] += 2 * cost * amount
        return Timing([cost * amount], [cost * amount])

    points = [(amount, lambda left, amount=amount: take(amount, left)) for amount in (0.25, 0.5, 1, 2, 8)]
    assert sampled(points, budget, Peak(mx.cpu())).amounts == measured


def test_work_is_repeated_as_often_as_fits():
    done = []
    assert len(repeated(lambda: done.append(1), 0.0).wall) == 1
    assert len(done) == 2  # once to warm up
    assert len(repeated(lambda: None, 1e9).wall) == measure._MOST


def test_times_between_stamps():
    stamps = [Stamp(0.0, 5.0, None), Stamp(2.0, 6.0, None), Stamp(3.0, 6.5, None)]
    assert between(stamps) == Timing([2.0, 1.0], [1.0, 0.5], None)


PEAK = """
import numpy as np
from cbst_mx.planning.measure import Peak
from symbols.backend import mx

MB = 1 << 20
peak = Peak(mx.cpu())
before = peak.read()
large = np.ones(64 * MB, np.uint8)
assert peak.read() >= before + 50 * MB
del large
peak.reset()
assert peak.read() < before + 50 * MB
"""


def test_the_peak_begins_anew():
    if not measure._CLEAR.exists():
        pytest.skip("the system cannot reset it")
    # in a process of its own: this one may give back memory of other tests meanwhile
    subprocess.run([sys.executable, "-c", PEAK], check=True, cwd=Path(__file__).parents[1])
