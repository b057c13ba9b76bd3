"""What those who work and those who watch share: lists that stay short, how work is told, and how it is given away."""

from __future__ import annotations

import functools
import os
import unicodedata
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Protocol, Sequence, TypeVar

__all__ = [
    "DETAIL",
    "Counter",
    "Iteration",
    "Part",
    "Progress",
    "Share",
    "Shares",
    "Together",
    "clock",
    "cores",
    "counted",
    "listed",
    "printable",
    "ranges",
    "shares_of",
    "silent",
    "stage_title",
]

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # (what, done, in all)
Counter = Callable[[int, int], None]  # (done, in all); `done` of a training phase is an `Iteration`

#: ``extra`` of a record of the log that is for the log file: a terminal does without it.
DETAIL = {"detail": True}


class Iteration(int):
    """The number of iterations that are done, as training phases give it to a `Counter`, with what is known of them.

    Parameters
    ----------
    done : int
        Iterations.
    loss : float, optional
        The latest loss that has been read, which is of an iteration shortly before.
    rate : float, optional
        Learning rate.
    """

    loss: float | None
    rate: float | None

    def __new__(cls, done: int, *, loss: float | None = None, rate: float | None = None) -> Iteration:
        """Return the number."""
        made = super().__new__(cls, done)
        made.loss, made.rate = loss, rate
        return made


class Part(NamedTuple):
    """One part of the work of a run, which `Progress` tells by its title: a training, a pass over images."""

    run: str  # name of the experiment
    stage: int  # 0 for the source network, else the round
    step: str  # "training", "pseudo-labels", "evaluation on NAME", "predictions of the target", "warm-up", ...
    title: str  # as `Progress` gets it
    total: int  # steps that it counts
    size: int = 1  # images of a step
    done: bool = False
    seconds: float | None = None  # that it took, where that is known


def silent(*_: Any) -> None:
    """Tell nobody: the default of `Progress` and `Counter`."""


class Share(NamedTuple):
    """A part of some work that another process may do."""

    arguments: tuple[Any, ...]  # of the function; files go as paths
    names: Sequence[str]  # of the images it is on, for sentences
    needs: Path | None = None  # a file of it, which must be there wherever it is done
    apart: Callable[[], Sequence[Share]] | None = None  # the same work, image by image
    stays: bool = False  # whether what it has done stays done where another share fails


def shares_of(make: Callable[[Sequence[T]], Share], parts: Iterable[Sequence[T]]) -> list[Share]:
    """Return the share that `make` makes of every part; those of several items can be taken apart.

    Examples
    --------
    >>> (share,) = shares_of(lambda part: Share((sum(part),), [str(item) for item in part]), [[1, 2]])
    >>> share.arguments, [(one.arguments, one.names) for one in share.apart()]
    ((3,), [((1,), ['1']), ((2,), ['2'])])
    """
    return [
        make(part)._replace(apart=functools.partial(_one_by_one, make, part) if len(part) > 1 else None)
        for part in parts
    ]


def _one_by_one(make: Callable[[Sequence[T]], Share], part: Sequence[T]) -> list[Share]:
    return [make(part[at : at + 1]) for at in range(len(part))]


class Together(Protocol):
    """Starts processes that work together over MXNet's kvstore: a :class:`cbst_mx.cluster.kvstore.KVStore`."""

    size: int

    def __call__(
        self, function: Callable[..., None], arguments: Sequence[Any], hear: Callable[[Any], None], *, name: str
    ) -> None:
        """Call ``function(*arguments, seat)`` in all of them, again from what it has saved if one is lost.

        Those of an earlier command that did work of the same `name`, and are still there, are ended first.

        What they tell by ``seat.tell`` is given to `hear`, and None while nothing comes; if it raises StoppedError
        they find ``seat.asked_to_stop``.
        """


class Shares(Protocol):
    """Processes that do shares of work: a :class:`cbst_mx.cluster.Cluster`.

    Attributes
    ----------
    together : Together or None
        Starts processes there that train; None where training stays with the command.
    """

    together: Together | None

    @property
    def size(self) -> int:
        """Number of processes, at least 1."""

    def each(
        self,
        function: Callable[..., Any],
        shares: list[Share],
        *,
        waiting_for: Callable[[], None] = silent,
        ahead: int = 2,
    ) -> Iterator[tuple[int, Any]]:
        """Call a function with the arguments of every share; yield the index of a share and its result, in any order.

        Where a share can be taken apart, and ends the processes that do it, its parts are added at the end of `shares`
        and done as well, before an error says which of them are to blame. `waiting_for` is called twice a second while
        nothing comes; it may raise to end the work. `ahead` shares are on their way for each process.
        """


def cores() -> int:
    """Return on how many processor cores this process may run."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, in the singular or the plural.

    Parameters
    ----------
    number : int
        How many.
    noun : str
        The singular; the last word takes the ending.
    plural : str, optional
        Where it is not formed by -s, -es or -ies.

    Examples
    --------
    >>> counted(1, "image"), counted(2502, "image"), counted(0, "class"), counted(2, "city")
    ('1 image', '2,502 images', '0 classes', '2 cities')
    """
    if number == 1:
        return f"1 {noun}"
    if plural is None:
        plural = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"
        if noun.endswith(("s", "x", "ch", "sh")):
            plural = f"{noun}es"
    return f"{number:,} {plural}"


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, in front of them the days.

    Examples
    --------
    >>> clock(75.2), clock(93_784)
    ('0:01:15', '1 d 2:03:04')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02}:{rest:02}"


def listed(items: Sequence[Any], shown: int = 5, what: str = "") -> str:
    """Write the first items of a list, and how many follow.

    Parameters
    ----------
    items : sequence
        Written by ``str``.
    shown : int
        How many at most.
    what : str
        Noun, in the singular, for those that are left out.

    Examples
    --------
    >>> listed(["a", "b"])
    'a, b'
    >>> listed(range(9), shown=3, what="image")
    '0, 1, 2 and 6 more images'
    """
    rest = len(items) - shown
    more = counted(rest, f"more {what}") if what else f"{rest:,} more"
    return ", ".join(map(str, items[:shown])) + (f" and {more}" if rest > 0 else "")


def printable(text: str) -> str:
    r"""Return text in which characters that a terminal obeys are written out.

    Those are controls, marks that turn the direction of writing, and bytes that were no text; line feeds and tabs stay.
    Names in files that came from elsewhere may hold them.

    Examples
    --------
    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(one)[1:-1] if _is_obeyed(one) else one for one in text)


def _is_obeyed(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def ranges(numbers: Iterable[int], width: int = 1) -> list[str]:
    """Write whole numbers compactly, in ascending order.

    A range that starts below zero is written number by number: it would read as "-1-34".

    Parameters
    ----------
    numbers : iterable of int
        In any order, none twice.
    width : int
        Least number of digits; shorter numbers start with zeros.

    Examples
    --------
    >>> ", ".join(ranges([3, 0, 1, 2, 255, -1]))
    '-1, 0-3, 255'
    >>> ranges([7, 8], width=3)
    ['007-008']
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1 and runs[-1][0] >= 0:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [f"{low:0{width}}" if low == high else f"{low:0{width}}-{high:0{width}}" for low, high in runs]


def stage_title(index: int) -> str:
    """Return what a stage of a run is called: 0 is the source network, r the network after round r.

    Examples
    --------
    >>> stage_title(0), stage_title(2)
    ('source', 'round 2')
    """
    return f"round {index}" if index else "source"
