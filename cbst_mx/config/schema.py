"""The keys of experiment and description files, told by the models: JSON schemas for editors, and rows for a reference.

Nothing here is written by hand: types and limits, defaults and meanings are those of the models.
"""

from __future__ import annotations

import json
import re
from typing import Any, Iterator, NamedTuple

from pydantic import BaseModel

from cbst_mx.config.experiment import Experiment
from cbst_mx.data.description import KnownClasses, OwnClasses

__all__ = ["KINDS", "NO_DEFAULT", "Key", "json_schema", "keys"]

#: Kind of a YAML file to its models, of which the first has the keys of the others as well.
KINDS: dict[str, tuple[type[BaseModel], ...]] = {"experiment": (Experiment,), "data": (OwnClasses, KnownClasses)}

NO_DEFAULT = "required"
_DEFINITIONS = "definitions"  # the name that editors know
_EXTENDS = {
    "type": "string",
    "description": "Another experiment file, relative to this one, whose settings this one changes. Origin: ours.",
}
_WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_PLURALS = {"integer": "integers", "number": "numbers", "text": "texts"}


class Key(NamedTuple):
    """One key of a YAML file.

    Attributes
    ----------
    name : str
        With dots between levels; ``NAME`` stands for names of one's own.
    type : str
        What it takes, with limits, in words.
    default : str
        As YAML, or `NO_DEFAULT`; empty for a mapping, whose keys have their own.
    unit : str
        Of a number; else empty.
    origin : str
        Of the default or, where there is none, of the key: "paper", "inferred", "released" or "ours".
    meaning : str
        One or two sentences, Markdown.
    """

    name: str
    type: str
    default: str
    unit: str
    origin: str
    meaning: str


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON schema (draft 7) of a kind of YAML file.

    Of an experiment that ``extends`` another one no key is required: what it leaves out stands there.

    Parameters
    ----------
    kind : {"experiment", "data"}
    """
    schemas = [_schema(model) for model in KINDS[kind]]
    if kind == "experiment":
        whole, part = schemas[0], _partial(schemas[0])
        for schema in (whole, part):
            schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
        choices = ("Experiment", whole), ("ExtendingExperiment", part)
        test: dict[str, Any] = {"required": ["extends"]}
        then, otherwise = "ExtendingExperiment", "Experiment"
    else:
        choices = ("OwnClasses", schemas[0]), ("KnownClasses", schemas[1])
        test = {"properties": {"label_space": {"type": "object"}}, "required": ["label_space"]}
        then, otherwise = "OwnClasses", "KnownClasses"
    definitions: dict[str, Any] = {}
    for name, schema in choices:
        definitions.update(schema.pop(_DEFINITIONS, {}))
        definitions[name] = schema
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"cbst_mx {'experiment' if kind == 'experiment' else 'data description'}",
        "type": "object",
        "if": test,
        "then": {"$ref": f"#/{_DEFINITIONS}/{then}"},
        "else": {"$ref": f"#/{_DEFINITIONS}/{otherwise}"},
        _DEFINITIONS: definitions,
    }


def keys(model: type[BaseModel]) -> list[Key]:
    """Return the keys of a model and of the models within it, in their order.

    Parameters
    ----------
    model : type of BaseModel
        One of `KINDS`.
    """
    schema = _schema(model)
    return list(_walk(schema, schema.get(_DEFINITIONS, {}), ""))


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a model as editors read it: nothing beside a reference, no titles made of key names."""
    raw = model.model_json_schema(ref_template=f"#/{_DEFINITIONS}/{{model}}")
    raw[_DEFINITIONS] = raw.pop("$defs", {})
    cleaned: dict[str, Any] = _cleaned(raw)
    return cleaned


def _cleaned(node: Any, of_names: bool = False) -> Any:
    """Return a copy; `of_names` where the keys are names and no words of the schema."""
    if isinstance(node, list):
        return [_cleaned(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {
        key: _cleaned(value, key in ("properties", _DEFINITIONS) and not of_names)
        for key, value in node.items()
        if of_names or key != "title"
    }
    if isinstance(result.get("description"), str) and not of_names:
        result["description"] = " ".join(result["description"].split())
    if "$ref" in result and len(result) > 1 and not of_names:
        return {"allOf": [{"$ref": result.pop("$ref")}], **result}
    return result


def _partial(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a schema in which no key is required."""

    def renamed(node: Any) -> Any:
        if isinstance(node, list):
            return [renamed(item) for item in node]
        if not isinstance(node, dict):
            return node
        result = {key: renamed(value) for key, value in node.items() if key != "required"}
        if isinstance(result.get("$ref"), str):
            result["$ref"] = result["$ref"].replace(f"{_DEFINITIONS}/", f"{_DEFINITIONS}/Partial")
        return result

    copy: dict[str, Any] = renamed(schema)
    copy[_DEFINITIONS] = {f"Partial{name}": value for name, value in copy[_DEFINITIONS].items()}
    return copy


def _walk(schema: dict[str, Any], definitions: dict[str, Any], above: str) -> Iterator[Key]:
    for name, node in schema["properties"].items():
        key = f"{above}.{name}" if above else name
        meaning, unit, origin = _parts(node.get("description", ""))
        inside, mapping = _model_of(node, definitions)
        default = _text(node["default"]) if "default" in node else NO_DEFAULT
        if inside is not None and default not in ("null", NO_DEFAULT):
            default = "{}" if default == "{}" else ""
        yield Key(key, _type(node, definitions), default, unit, origin, meaning)
        if inside is not None:
            yield from _walk(inside, definitions, f"{key}.NAME" if mapping else key)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parts(description: str) -> tuple[str, str, str]:
    """Return the meaning, the unit and the origin that a description ends with."""
    text = " ".join(description.split())
    unit, origin = (re.search(rf" {word}: (.+?)[.](?= Origin:|$)", f" {text}") for word in ("Unit", "Origin"))
    meaning = re.sub(r" (Unit|Origin): .*$", "", f" {text}").strip()
    return meaning, unit.group(1) if unit else "", origin.group(1) if origin else ""


def _references(node: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield the names of the models in a node, and whether they are the values of a mapping."""
    if "$ref" in node:
        yield node["$ref"].rpartition("/")[2], False
    for part in (*node.get("allOf", ()), *node.get("anyOf", ())):
        yield from _references(part)
    if isinstance(node.get("additionalProperties"), dict):
        for name, _ in _references(node["additionalProperties"]):
            yield name, True


def _model_of(node: dict[str, Any], definitions: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    for name, mapping in _references(node):
        return definitions[name], mapping
    return None, False


def _type(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Say in words what a node of a schema takes."""
    for word in ("anyOf", "allOf"):
        if word in node:
            return " or ".join(dict.fromkeys(_type(part, definitions) for part in node[word]))
    if "$ref" in node:
        return "mapping"
    if "enum" in node or "const" in node:
        return " | ".join(_text(value) for value in node.get("enum", [node.get("const")]))
    kind = node.get("type", "")
    if kind == "array":
        return _list(node, definitions)
    if kind == "object":
        return "mapping"
    return f"{_WORDS.get(kind, 'anything')}{_limits(node)}"


def _list(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    item = _type(node.get("items", {}), definitions)
    word, comma, limits = item.partition(",")
    fewest, most = node.get("minItems"), node.get("maxItems")
    number = f"{fewest} " if fewest is not None and fewest == most else ""
    plural = "lists" + item[len("list") :] if item.startswith("list") else _PLURALS.get(word, word) + comma + limits
    return f"list of {number}{plural}"


def _limits(node: dict[str, Any]) -> str:
    """Say the limits of a number, as in ", 0 to 1" or ", above 0, at most 1"."""
    low = "above" if "exclusiveMinimum" in node else ""
    high = "below" if "exclusiveMaximum" in node else "at most"
    smallest = node.get("minimum", node.get("exclusiveMinimum"))
    largest = node.get("maximum", node.get("exclusiveMaximum"))
    if smallest is None or largest is None:
        return ""
    if low:
        return f", above {_number(smallest)}, {high} {_number(largest)}"
    return f", {_number(smallest)} to {'below ' if high == 'below' else ''}{_number(largest)}"


def _number(value: float) -> str:
    if value == 2**64:
        return "2^64"
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e10 else f"{value:g}"
