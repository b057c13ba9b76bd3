"""What is read or computed one step ahead, in order: nothing depends on it but the time.

An image of 1024 x 2048 pixels takes 30 to 80 ms to decode, during which a device that waits for it does nothing. A
thread that reads ahead hides that: decoders work outside Python's global lock. A device computes while Python goes on;
who looks at its results one step later than it asks for them lets it work meanwhile.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Iterable, Iterator, TypeVar

from cbst_mx.errors import CBSTError

__all__ = ["one_step_later", "read_ahead"]

T = TypeVar("T")
_END: Any = object()


def read_ahead(items: Iterable[T], most: int) -> Iterator[T]:
    """Yield items in their order; a thread makes the next ones meanwhile.

    Parameters
    ----------
    items : iterable
        What takes time to make, such as a generator that reads images. Made by one thread, which is not the caller's.
    most : int
        Items that wait at most, beside the one that is being made; with 0 there is no thread.

    Yields
    ------
    item

    Raises
    ------
    Exception
        If an item cannot be made, what it raises, when it is due: after all items before it.
    """
    if most < 1:
        yield from items
        return
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix="cbst-ahead")
    waiting: deque[Future] = deque()
    try:
        while True:
            while len(waiting) <= most:
                waiting.append(pool.submit(next, iterator, _END))
            item = waiting.popleft().result()
            if item is _END:
                return
            yield item
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)  # before the generator that reads is closed
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def one_step_later(items: Iterable[T]) -> Iterator[T]:
    """Yield every item after the next one has been asked for.

    Parameters
    ----------
    items : iterable
        What begins to be computed when it is asked for, and is waited for when it is looked at, such as MXNet's arrays.

    Yields
    ------
    item

    Raises
    ------
    Exception
        If an item cannot be made, what it raises, when it is due: after all items before it.
    """
    iterator = iter(items)
    item = next(iterator, _END)
    while item is not _END:
        try:
            following = next(iterator, _END)
        except CBSTError:  # of the next one
            yield item
            raise
        yield item
        item = following
