"""Remaining time, with a clock that is moved by hand."""

from __future__ import annotations

import pytest

from cbst_mx.cli.tracking import Left, Tracker
from cbst_mx.messages import Iteration, Part


class Clock:
    """Seconds, moved by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def part(stage, step, total, size=1, **more):
    return Part("run", stage, step, f"run, {stage}: {step}", total, size, **more)


PARTS = [
    part(0, "training", 100, 8),
    part(0, "evaluation on target", 10),
    part(1, "training", 50, 4),
    part(1, "evaluation on target", 10),
]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tracker(clock):
    made = Tracker(clock)
    made.follow(PARTS)
    return made


def advance(tracker, clock, place, done, seconds):
    clock.now += seconds
    return tracker.update(PARTS[place].title, done, PARTS[place].total)


def complete(tracker, clock, place, seconds):
    advance(tracker, clock, place, 1, seconds / 10)
    advance(tracker, clock, place, PARTS[place].total, seconds * 9 / 10)


def test_trainings_are_compared_by_their_images_and_what_is_unknown_is_a_lower_bound(tracker, clock):
    assert advance(tracker, clock, 0, 1, 5) is True
    assert advance(tracker, clock, 0, 11, 20) is False  # 2 s for a batch of 8, after the first
    assert tracker.left_here() == pytest.approx(89 * 2)
    # the other training: 50 batches of 4, so of 1 s; how long an evaluation takes is not known yet
    assert tracker.left() == Left(pytest.approx(89 * 2 + 50), False)
    assert 0 < tracker.share() < 1 / 4


def test_what_a_kind_took_tells_what_the_next_of_it_will(tracker, clock):
    complete(tracker, clock, 0, 200)  # 2 s a batch of 8 with all that is around it
    complete(tracker, clock, 1, 30)  # 3 s an image
    assert tracker.left() == Left(pytest.approx(50 * 1 + 10 * 3), True)
    assert tracker.spent() == 230
    assert tracker.share() == pytest.approx(230 / 310)
    assert tracker.stage() == (2, 2)


def test_the_ledger_of_an_earlier_call_tells_it_too(clock):
    tracker = Tracker(clock)
    done = [PARTS[0]._replace(done=True, seconds=200.0), PARTS[1]._replace(done=True, seconds=30.0), *PARTS[2:]]
    tracker.follow(done)
    assert tracker.left() == Left(pytest.approx(80), True)
    assert tracker.spent() == 230


def test_a_training_that_is_continued_is_as_fast_as_its_own_steps(tracker, clock):
    tracker.update(PARTS[0].title, 0, 100)  # begins
    advance(tracker, clock, 0, 61, 2)  # the first step of this call
    assert tracker.left_here() == pytest.approx(39 * 2)
    advance(tracker, clock, 0, 100, 78)
    complete(tracker, clock, 1, 10)
    assert tracker.left().seconds == pytest.approx(50 + 10)


def test_a_kind_that_was_never_done_is_taken_for_the_one_that_is_most_like_it(tracker, clock):
    tracker.follow([*PARTS[:2], part(1, "predictions of the target", 20)])
    complete(tracker, clock, 0, 200)
    complete(tracker, clock, 1, 30)
    assert tracker.left() == Left(pytest.approx(60), True)


def test_a_rollback_does_later_parts_again(tracker, clock):
    for place in range(3):
        advance(tracker, clock, place, PARTS[place].total, 10)
    assert tracker.stage() == (1, 2)
    advance(tracker, clock, 0, 1, 1)
    assert tracker.stage() == (0, 2)
    assert tracker.share() < 0.5


def test_work_that_no_run_has_is_followed_by_itself(clock):
    tracker = Tracker(clock)
    assert tracker.left_here() is None
    assert tracker.stage() is None
    clock.now += 2
    tracker.update("pixels", 1, 5)
    assert tracker.stage() is None
    assert tracker.left_here() == pytest.approx(8)


def test_loss_and_rate_stay_until_there_are_others(tracker, clock):
    tracker.update(PARTS[0].title, Iteration(1, rate=0.1), 100)
    assert (tracker.current.loss, tracker.current.rate) == (None, 0.1)
    tracker.update(PARTS[0].title, Iteration(2, loss=2.5, rate=0.2), 100)
    tracker.update(PARTS[0].title, Iteration(3, rate=0.3), 100)
    assert (tracker.current.loss, tracker.current.rate) == (2.5, 0.3)
