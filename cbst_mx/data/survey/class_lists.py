"""Lists of classes as annotation tools and data sets write them beside masks: text, CSV, JSON.

Read are, one class a line, a name with an id or a colour in any order (``road 128 64 128``, ``128 64 128 road``,
``7,road``, ``road:128,64,128::`` of CVAT), names alone (the first is class 0), a CSV with a line of headings, and JSON:
a list of names, ``{"road": 7}``, ``{"7": "road"}``, ``{"road": [128, 64, 128]}``, or objects with a name or title
and an id or a color.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from cbst_mx.errors import DataError
from cbst_mx.files import parse_json, read_bounded

__all__ = ["ClassList", "read_class_list"]

_LARGEST = 1_000_000  # bytes
_HEADINGS = {"name", "class", "label", "title", "id", "r", "g", "b", "red", "green", "blue", "color", "colour"}

Value = Union[int, "tuple[int, int, int]"]


@dataclass
class ClassList:
    """Names by id or colour, and names in order where the list has neither."""

    names: dict[Value, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def read_class_list(path: Path) -> ClassList:
    """Read a list of classes.

    Raises
    ------
    DataError
        If the file cannot be read or is no such list.
    """
    try:
        text = read_bounded(path, _LARGEST).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"list of classes {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list of classes {path} cannot be read as text in UTF-8: {error}") from error
    found = ClassList()
    if path.suffix.lower() == ".json":
        try:
            _from_json(parse_json(text), found)
        except (ValueError, RecursionError) as error:
            raise DataError(f"list of classes {path} is no JSON: {error}") from error
    else:
        for line in text.splitlines():
            _from_line(line, found)
    if not found.names and not found.order:
        raise DataError(
            f"list of classes {path} names no class: a line must be a name, and an id or a colour if it has"
        )
    return found


def _from_line(line: str, found: ClassList) -> None:
    if not line.strip() or re.match(r"\s*(//|#(?![0-9a-fA-F]{6}\b))", line):
        return
    hexadecimal = re.search(r"#([0-9a-fA-F]{6})\b", line)
    if hexadecimal:
        code = int(hexadecimal.group(1), 16)
        name = _clean(line.replace(hexadecimal.group(), " "))
        if name:
            found.names[(code >> 16, code >> 8 & 255, code & 255)] = name
        return
    words = [word for word in re.split(r"[\s,;:\t]+", line.strip()) if word]
    if len(words) > 1 and {word.lower() for word in words} <= _HEADINGS:
        return
    whole = [bool(re.fullmatch(r"\d+", word)) for word in words]
    # numbers stand before or behind the name; a name may end in one only where three others follow
    before = next((place for place, one in enumerate(whole) if not one), len(words))
    behind = next((place for place, one in enumerate(reversed(whole)) if not one), len(words))
    if before == len(words):
        return
    name = _clean(" ".join(words[before : len(words) - behind]))
    numbers = [int(word) for word in (*words[:before], *words[len(words) - behind :])]
    if len(numbers) >= 3 and max(numbers[-3:]) <= 255:
        found.names[(numbers[-3], numbers[-2], numbers[-1])] = name
        numbers = numbers[:-3]
    if numbers:
        found.names[numbers[0]] = name
    elif not any(whole):
        found.order.append(name)


def _clean(text: str) -> str:
    text = re.sub(r"\s+", " ", text.strip(" \t,;:'\"")).strip()
    return "".join(one for one in text if one.isprintable())


def _from_json(values: Any, found: ClassList) -> None:
    if isinstance(values, dict):
        inner = next((values[key] for key in ("classes", "labels", "categories", "names") if key in values), None)
        if isinstance(inner, (list, dict)):
            _from_json(inner, found)
            return
        for key, value in values.items():
            colour = _colour(value)
            if isinstance(value, str) and re.fullmatch(r"\d{1,9}", key):
                found.names[int(key)] = _clean(value)
            elif colour is not None:
                found.names[colour] = _clean(key)
            elif isinstance(value, int) and not isinstance(value, bool):
                found.names[value] = _clean(key)
        return
    for one in values if isinstance(values, list) else ():
        if isinstance(one, str):
            found.order.append(_clean(one))
        elif isinstance(one, dict):
            name = next(
                (one[key] for key in ("readable", "title", "name", "label") if isinstance(one.get(key), str)), ""
            )
            colour = next((_colour(one[key]) for key in ("color", "colour") if key in one), None)
            number = one.get("id")
            if name and colour is not None:
                found.names[colour] = _clean(name)
            if name and isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 65535:
                found.names[number] = _clean(name)


def _colour(value: Any) -> tuple[int, int, int] | None:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        code = int(value[1:], 16)
        return code >> 16, code >> 8 & 255, code & 255
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return value[0], value[1], value[2]
    return None
