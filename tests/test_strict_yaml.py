"""Strict YAML, and one sentence for whatever is wrong with it."""

# pydantic evaluates annotations, and Python 3.8 has no list[str] or X | None there.
# ruff: noqa: UP006, UP045
from __future__ import annotations

from typing import Dict, List, Literal, Optional

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cbst_mx.errors import ConfigError
from cbst_mx.strict_yaml import one_sentence, read_yaml


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    portion: float = Field(gt=0, le=1)
    rounds: int = Field(default=1, ge=1)
    method: Literal["st", "cbst"] = "cbst"
    flip: bool = True

    @field_validator("rounds")
    @classmethod
    def _not_seven(cls, value: int) -> int:
        if value == 7:
            raise ValueError("must not be 7")
        return value


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    part: Part
    parts: List[Part] = []
    named: Dict[str, Part] = {}
    other: Optional[Part] = None


GOOD = {"portion": 0.2}


def sentence(content: object) -> str:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(content)
    return one_sentence(error.value, "x.yaml", Whole)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "key 'part' is missing (it must be a mapping with the keys portion, rounds, method, flip)"),
        ({"part": {}}, "key 'part.portion' is missing (it must be a number in (0, 1])"),
        ({"part": 3}, "key 'part' must be a mapping, got 3"),
        ({"part": {"portion": 1.2}}, "key 'part.portion' must be in (0, 1], got 1.2"),
        ({"part": {"portion": 0.0}}, "key 'part.portion' must be in (0, 1], got 0.0"),
        ({"part": {"portion": "a"}}, "key 'part.portion' must be a number, got 'a'"),
        ({"part": {"portion": True}}, "key 'part.portion' must be a number, got True"),
        ({"part": {**GOOD, "rounds": 0}}, "key 'part.rounds' must be greater than or equal to 1, got 0"),
        ({"part": {**GOOD, "rounds": 2.5}}, "key 'part.rounds' must be an integer, got 2.5"),
        ({"part": {**GOOD, "rounds": 7}}, "key 'part.rounds': must not be 7"),
        ({"part": {**GOOD, "method": "x"}}, "key 'part.method' must be 'st' or 'cbst', got 'x'"),
        ({"part": {**GOOD, "flip": "no"}}, "key 'part.flip' must be true or false, got 'no'"),
        ({"part": GOOD, "parts": [GOOD, {"portion": 2.0}]}, "key 'parts[1].portion' must be in (0, 1], got 2.0"),
        ({"part": GOOD, "named": {"a": {"portion": 2.0}}}, "key 'named.a.portion' must be in (0, 1], got 2.0"),
        (
            {"part": GOOD, "other": {**GOOD, "x": 1}},
            "unknown key 'other.x' (allowed: portion, rounds, method, flip)",
        ),
        ({"part": GOOD, "x": 1}, "unknown key 'x' (allowed: part, parts, named, other)"),
        # A misspelt key is also a missing one: the misspelling is what helps.
        (
            {"part": {"portoin": 0.2}},
            "unknown key 'part.portoin' (allowed: portion, rounds, method, flip) (and 1 more problem)",
        ),
        ({"part": {"portion": "a" * 100}}, f"key 'part.portion' must be a number, got '{'a' * 56}..."),
    ],
)
def test_one_sentence(content, expected):
    assert sentence(content) == f"x.yaml: {expected}"


def test_one_sentence_without_the_model():
    with pytest.raises(ValidationError) as error:
        Whole.model_validate({"part": GOOD, "x": 1})
    assert one_sentence(error.value, "x.yaml") == "x.yaml: unknown key 'x'"


def test_yaml_numbers_with_an_exponent_are_numbers(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("{a: 1e-4, b: 2E3, c: -3.e+2, d: 12, e: 1.5, f: 1e, g: '1e-4'}")
    assert read_yaml(path) == {"a": 1e-4, "b": 2000.0, "c": -300.0, "d": 12, "e": 1.5, "f": "1e", "g": "1e-4"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", " is not valid YAML, line 3: key 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", " is not valid YAML, line 1: key 'b' is given twice"),
        ("a: [1\n", " is not valid YAML, line 2: "),
        ("a: \x01\n", " is not valid YAML: "),
        ("a: !!python/object:os.system x\n", " is not valid YAML, line 1: could not determine a constructor"),
        ("- 1\n", " must hold a mapping of keys to values, got [1]"),
        ("1: 2\n", " must hold a mapping of keys to values, got {1: 2}"),
        ("", " must hold a mapping of keys to values, got None"),
    ],
)
def test_wrong_yaml_is_refused(tmp_path, content, expected):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}{expected}")
    assert "\n" not in str(error.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.yaml"
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path} does not exist"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match=r"x\.yaml must be text in UTF-8"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
