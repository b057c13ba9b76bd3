"""What sentences and progress bars share: lists that stay short, and how work in progress is told."""

from __future__ import annotations

import unicodedata
from typing import Any, Callable, Iterable, Sequence

__all__ = ["Counter", "Progress", "listed", "printable", "ranges", "silent", "stage_title"]

Progress = Callable[[str, int, int], None]  # (what, done, in all)
Counter = Callable[[int, int], None]  # (done, in all)


def silent(*_: Any) -> None:
    """Tell nobody: the default of `Progress` and `Counter`."""


def listed(items: Sequence[Any], shown: int = 5, what: str = "") -> str:
    """Write the first items of a list, and how many follow.

    Parameters
    ----------
    items : sequence
        Written by ``str``.
    shown : int
        How many at most.
    what : str
        Noun for those that are left out.

    Examples
    --------
    >>> listed(["a", "b"])
    'a, b'
    >>> listed(range(9), shown=3, what="images")
    '0, 1, 2 and 6 more images'
    """
    rest = len(items) - shown
    return ", ".join(map(str, items[:shown])) + (f" and {rest:,} more {what}".rstrip() if rest > 0 else "")


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
