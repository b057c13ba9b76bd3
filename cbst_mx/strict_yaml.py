"""Read YAML strictly, at a bounded cost, and say in one answer all that is wrong with it."""

from __future__ import annotations

import os
import re
import types
from typing import Any, Literal, NoReturn, Sequence, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cbst_mx.errors import ConfigError
from cbst_mx.files import read_bounded

__all__ = [
    "DEEPEST",
    "LARGEST_CONTENT",
    "LARGEST_FILE",
    "StrictModel",
    "in_one_answer",
    "one_sentence",
    "parse_value",
    "problems",
    "read_yaml",
]


class StrictModel(BaseModel):
    """Base of what YAML files hold: unknown keys, other types and infinities are refused; nothing changes later."""

    # what stands below a key is its description
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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
# Names of YAML's scalars in our words.
_SCALARS = {
    "tag:yaml.org,2002:int": "integer that can be read",
    "tag:yaml.org,2002:float": "number",
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:timestamp": "date: put it in quotes if it is a text",
}
_LONGEST_VALUE = 60
_LONGEST_PATH = 300
_LONGEST_REASON = 150
_LONGEST_INTEGER = 100  # characters
_SHOWN_PROBLEMS = 20

LARGEST_FILE = 1_000_000  # bytes of a YAML file
DEEPEST = 50  # levels of nesting
LARGEST_CONTENT = 2_000_000  # characters and values once every alias is written out


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Unlike plain YAML 1.1, a key given twice is refused, and ``1e-4`` is a number. The cost is bounded before the work:
    see `LARGEST_FILE`, `DEEPEST` and `LARGEST_CONTENT`.

    Raises
    ------
    ConfigError
        If the file is missing, no YAML, too large, or holds no mapping with text keys.
    """
    try:
        raw = read_bounded(path, LARGEST_FILE)
    except FileNotFoundError as error:
        raise ConfigError(f"{_cut(str(path), _LONGEST_PATH)} does not exist") from error
    except OSError as error:
        raise ConfigError(f"{_cut(str(path), _LONGEST_PATH)} cannot be read: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be text in UTF-8: {error.reason} at byte {error.start}") from error
    content = _load(text, f"{path} is not valid YAML", str(path))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {_without_texts(content)}")
    return content


def parse_value(text: str) -> Any:
    """Read one YAML value, with :func:`read_yaml`'s rules.

    Raises
    ------
    ConfigError
        If it is no YAML.
    """
    what = f"{_shown(text)} is not a YAML value"
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"{what}: it is longer than {LARGEST_FILE:,} characters")
    return _load(text, what, what)


def _load(text: str, wrong: str, origin: str) -> Any:
    """Return the content of YAML text; `wrong` begins the sentence if it cannot be read."""
    try:
        loader = _StrictLoader(text)
        content = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{wrong}{line}: {_cut(error.problem or error.context or '', _LONGEST_REASON)}") from error
    except Exception as error:  # whatever text does to the parser or to Python's own types
        raise ConfigError(
            f"{wrong}: {_cut(' '.join(str(error).split()), _LONGEST_REASON) or type(error).__name__}"
        ) from error
    if len(loader.problems) == 1:
        raise ConfigError(f"{wrong}, {loader.problems[0]}")
    if loader.problems:
        raise ConfigError(in_one_answer(origin, loader.problems))
    return content


def one_sentence(error: ValidationError, origin: str, model: type[BaseModel] | None = None) -> str:
    """Turn pydantic's report into one answer naming the file and every key: a sentence, or numbered lines for several.

    Parameters
    ----------
    error : ValidationError
        Error that pydantic raised.
    origin : str
        The file's name, for the answer.
    model : type of BaseModel, optional
        The model that was validated; with it the answer lists the keys or values that are allowed.
    """
    return in_one_answer(origin, problems(error, model))


def problems(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """Turn pydantic's report into a sentence for each key that is wrong.

    Parameters
    ----------
    error : ValidationError
        Error that pydantic raised.
    model : type of BaseModel, optional
        The model that was validated.

    Returns
    -------
    list of str
        Unknown keys before others: a misspelt key is also a missing one.
    """
    by_key: dict[str, list[tuple[str, str]]] = {}
    # The inputs can be large; each is shown cut.
    found = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    places = [(problem, _follow(model, problem["loc"])) for problem in found]
    within = {tuple(keys[:end]) for _, (keys, _, _) in places for end in range(len(keys))}
    for problem, (keys, annotation, limits) in places:
        of_another_kind = isinstance(problem["input"], (dict, list)) and problem["type"] in (
            *_KIND_WORDS,
            "literal_error",
        )
        if of_another_kind and tuple(keys) in within:  # another member of the union fits but for something within
            continue
        by_key.setdefault(_dotted(keys), []).append(_requirement(problem, keys, annotation, limits, model))
    sentences = []
    for complaints in by_key.values():
        # The members of a union complain one by one about the same key.
        texts = list(dict.fromkeys(text for text, _ in complaints))
        sentence = " or ".join(
            [texts[0], *(text[text.rindex("must be") + len("must be ") :] for text in texts[1:] if "must be" in text)]
        )
        sentences.append(f"{sentence}{complaints[0][1]}")
    return sentences


def in_one_answer(origin: str, sentences: Sequence[str]) -> str:
    """Return one problem as a sentence, several as numbered lines, of many the first.

    Parameters
    ----------
    origin : str
        Name of the file they are in.
    sentences : sequence of str
        One for each problem, at least one.
    """
    if len(sentences) == 1:
        return f"{origin}: {sentences[0]}"
    lines = [f"{number}. {sentence}" for number, sentence in enumerate(sentences[:_SHOWN_PROBLEMS], start=1)]
    rest = len(sentences) - _SHOWN_PROBLEMS
    if rest > 0:
        lines.append(f"and {rest:,} more")
    return f"{origin} has {len(sentences):,} problems:\n" + "\n".join(f"  {line}" for line in lines)


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
        name = key if isinstance(key, int) else _cut(str(key))
        name = name if not isinstance(name, str) or name.isprintable() else repr(name)[1:-1]
        text += f"[{name}]" if isinstance(key, int) else f".{name}" if text else str(name)
    return text


def _without_texts(content: Any) -> str:
    """Return what a file holds in place of a mapping: it may be another file, whose texts are nobody's business."""
    parts = [content] if isinstance(content, str) else [*content] if isinstance(content, (list, dict)) else []
    if any(isinstance(part, (str, list, dict, bytes)) for part in parts):
        return _TYPE_WORDS[type(content)]
    return _shown(content)


def _shown(value: Any) -> str:
    try:
        return _cut(repr(value))
    except Exception:  # an integer with more digits than Python writes
        return f"a value of type {type(value).__name__}"


def _cut(text: str, longest: int | None = None) -> str:
    longest = longest or _LONGEST_VALUE
    return text if len(text) <= longest else text[: longest - 3] + "..."


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 with three traps removed: repeated keys, ``1e-4`` read as text, and content that has no end.

    Repeated keys and values that are not what they look like (dates, numbers) are gathered in ``problems``.
    """

    def __init__(self, stream: str) -> None:
        self.problems: list[str] = []
        self._depth = 0
        super().__init__(stream)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"it is nested more than {DEEPEST} levels deep", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_size(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST_INTEGER:
                raise ValueError("too many digits")
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception as error:
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = _SCALARS.get(node.tag, node.tag.rpartition(":")[2])
            self.problems.append(
                f"line {node.start_mark.line + 1}: {_shown(node.value)} is no {kind} ({_cut(str(error))})"
            )
            return None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in seen:
                self.problems.append(f"line {key_node.start_mark.line + 1}: key {_shown(key)} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _check_size(root: yaml.Node) -> None:
    """Refuse content that is too large or too deep once every alias is written out, or that contains itself."""
    measures: dict[int, tuple[int, int]] = {}
    unfinished: set[int] = set()

    def refuse(text: str, node: yaml.Node) -> NoReturn:
        raise yaml.composer.ComposerError(None, None, text, node.start_mark)

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Return characters and values, and levels, below and with `node`."""
        if id(node) in measures:
            return measures[id(node)]
        if id(node) in unfinished:
            refuse("an alias leads back into itself", node)
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value), 1
        unfinished.add(id(node))
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        below = [measure(part) for part in parts]
        size, depth = 1 + sum(size for size, _ in below), 1 + max((depth for _, depth in below), default=0)
        if size > LARGEST_CONTENT:
            refuse(f"it has more than {LARGEST_CONTENT:,} characters once every alias is written out", node)
        if depth > DEEPEST:
            refuse(f"it is nested more than {DEEPEST} levels deep", node)
        unfinished.remove(id(node))
        measures[id(node)] = size, depth
        return size, depth

    measure(root)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
