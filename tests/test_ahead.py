"""Reading ahead: the same items in the same order, errors when they are due, few items in memory, no thread left."""

from __future__ import annotations

import threading
import time

import pytest

from cbst_mx.data.ahead import one_step_later, read_ahead
from cbst_mx.errors import DataError


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cbst-ahead")]


@pytest.mark.parametrize("most", [0, 1, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_items_keep_their_order(most, count):
    assert list(read_ahead((n * n for n in range(count)), most)) == [n * n for n in range(count)]
    assert list(one_step_later(n * n for n in range(count))) == [n * n for n in range(count)]
    assert threads() == []


def failing(at, error):
    for number in range(10):
        if number == at:
            raise error
        yield number


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("ahead", [lambda items: read_ahead(items, 3), one_step_later])
def test_an_error_comes_after_all_items_before_it(at, ahead):
    seen = []
    with pytest.raises(DataError, match="image 7 is damaged"):
        seen.extend(ahead(failing(at, DataError("image 7 is damaged"))))
    assert seen == list(range(at))
    assert threads() == []


def test_no_more_items_are_made_than_may_wait():
    made, allowed = [], threading.Semaphore(0)

    def items():
        for number in range(20):
            made.append(number)
            yield number
            allowed.release()

    reader = read_ahead(items(), 2)
    assert next(reader) == 0
    for _ in range(2):  # two wait; the thread has gone as far as it may
        assert allowed.acquire(timeout=10)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    reader.close()
    assert threads() == []


def test_one_item_is_made_while_the_last_one_is_looked_at():
    made = []
    for item in one_step_later(made.append(number) or number for number in range(4)):
        assert made == list(range(min(4, item + 2)))


def test_whoever_stops_early_closes_the_reader():
    closed = []

    def items():
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    for item in read_ahead(items(), 4):
        if item == 3:
            break
    assert closed
    assert threads() == []


def test_items_are_made_by_one_other_thread():
    names = set(read_ahead((threading.current_thread().name for _ in range(10)), 3))
    assert len(names) == 1
    assert names != {threading.current_thread().name}
