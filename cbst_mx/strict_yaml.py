"""Read YAML strictly, and say in one sentence what is wrong with it."""

from __future__ import annotations

import os
import re
import types
from pathlib import Path
from typing import Any, Literal, Sequence, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cbst_mx.errors import ConfigError

__all__ = ["StrictModel", "one_sentence", "parse_value", "read_yaml"]


class StrictModel(BaseModel):
    """Base of what YAML files hold: unknown keys, other types and infinities are refused; nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


_UNIONS = (Union, getattr(types, "UnionType", Union))
_TYPE_WORDS = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}
# pydantic's kinds of errors in our words.
_KIND_WORDS = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a tuple",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_LONGEST_VALUE = 60


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Unlike plain YAML 1.1, a key given twice is refused, and ``1e-4`` is a number.

    Raises
    ------
    ConfigError
        If the file is missing, no YAML, or holds no mapping with text keys.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be text in UTF-8: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path} is not valid YAML{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {_shown(content)}")
    return content


def parse_value(text: str) -> Any:
    """Read one YAML value, with :func:`read_yaml`'s rules.

    Raises
    ------
    ConfigError
        If it is no YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not a YAML value: {' '.join(str(error).split())}") from error


def one_sentence(error: ValidationError, origin: str, model: type[BaseModel] | None = None) -> str:
    """Turn pydantic's report into one sentence naming the file and the key.

    Parameters
    ----------
    error : ValidationError
        Error that pydantic raised.
    origin : str
        The file's name, for the sentence.
    model : type of BaseModel, optional
        The model that was validated; with it the sentence lists the keys or values that are allowed.

    Returns
    -------
    str
        On the first problem, unknown keys before others (a misspelt key is also a missing one), and the number of
        further ones.
    """
    problems: dict[str, list[tuple[str, str]]] = {}
    for problem in sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden"):
        keys, annotation, limits = _follow(model, problem["loc"])
        problems.setdefault(_dotted(keys), []).append(_requirement(problem, keys, annotation, limits, model))
    # The members of a union complain one by one about the same key.
    complaints = next(iter(problems.values()))
    texts = list(dict.fromkeys(text for text, _ in complaints))
    sentence = " or ".join(
        [texts[0], *(text[text.rindex("must be") + len("must be ") :] for text in texts[1:] if "must be" in text)]
    )
    more = len(problems) - 1
    return f"{origin}: {sentence}{complaints[0][1]}" + (
        f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
    )


def _requirement(
    problem: Any, keys: Sequence[Any], annotation: Any, limits: Sequence[Any], model: type[BaseModel] | None
) -> tuple[str, str]:
    """Say what is required of a key, and what came instead."""
    key, kind = _dotted(keys), problem["type"]
    if kind == "extra_forbidden":
        known = _fields(_follow(model, keys[:-1])[1])
        return f"unknown key {key!r}", f" (allowed: {', '.join(known)})" if known else ""
    if kind == "missing":
        expected = _expected(annotation)
        if expected and _interval(limits):
            expected += f" in {_interval(limits)}"
        return f"key {key!r} is missing", f" (it must be {expected})" if expected else ""
    if kind in ("value_error", "assertion_error"):
        text = str(problem["ctx"]["error"])  # a validator of ours: already a sentence that says what came
        return (f"key {key!r}: {text}" if key else text), ""
    if kind in _KIND_WORDS:
        text = f"must be {_KIND_WORDS[kind]}"
    elif kind.startswith(("greater_than", "less_than")) and _interval(limits):
        text = f"must be in {_interval(limits)}"
    else:
        text = re.sub(r"^\w+ should", "must", problem["msg"])
        text = re.sub(r" after validation, not \d+$", "", text)
    return (f"key {key!r} {text}" if key else text), f", got {_shown(problem['input'])}"


def _follow(annotation: Any, loc: Sequence[Any]) -> tuple[list[Any], Any, list[Any]]:
    """Follow pydantic's location into a type; return its keys, the type found there (or None) and that type's limits.

    Of a union pydantic names the member too, which is no key.
    """
    keys: list[Any] = []
    limits: list[Any] = []
    rest = [part for part in loc if part != "[key]"]
    while True:
        while hasattr(annotation, "__metadata__"):  # Annotated
            limits = [limit for item in annotation.__metadata__ for limit in getattr(item, "metadata", [item])]
            annotation = annotation.__origin__
        members = [member for member in get_args(annotation) if member is not type(None)]
        if get_origin(annotation) in _UNIONS and len(members) == 1:
            annotation = members[0]
            continue
        if not rest:
            return keys, annotation, limits
        part = rest.pop(0)
        if get_origin(annotation) in _UNIONS:
            annotation = next((member for member in members if getattr(member, "__name__", "") == str(part)), None)
            continue
        keys.append(part)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found = annotation.model_fields.get(str(part))
            annotation, limits = (found.annotation, list(found.metadata)) if found else (None, [])
        else:
            arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
            annotation, limits = arguments[-1] if arguments else None, []  # a list's items, a mapping's values


def _interval(limits: Sequence[Any]) -> str:
    """Write limits from below and above as an interval such as "(0, 1]"; empty if a side is open."""
    sides = {
        name: getattr(limit, name)
        for limit in limits
        for name in ("gt", "ge", "lt", "le")
        if getattr(limit, name, None) is not None
    }
    low = f"({sides['gt']}" if "gt" in sides else f"[{sides['ge']}" if "ge" in sides else ""
    high = f"{sides['lt']})" if "lt" in sides else f"{sides['le']}]" if "le" in sides else ""
    return f"{low}, {high}" if low and high else ""


def _fields(annotation: Any) -> list[str]:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return list(candidate.model_fields)
    return []


def _expected(annotation: Any) -> str:
    """Say in words what a type allows; empty if there are no words for it."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(annotation))
    if origin in _UNIONS:
        words = [_expected(member) for member in get_args(annotation) if member is not type(None)]
        return " or ".join(words) if all(words) else ""
    if _fields(annotation) and origin is None:
        return "a mapping with the keys " + ", ".join(_fields(annotation))
    return _TYPE_WORDS.get(origin or annotation, "")


def _dotted(keys: Sequence[Any]) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 with two traps removed: repeated keys and ``1e-4`` read as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
