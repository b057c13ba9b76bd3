"""Strict YAML, and one sentence for whatever is wrong with it."""

# pydantic evaluates annotations, and Python 3.8 has no list[str] or X | None there.
# ruff: noqa: UP006, UP045
from __future__ import annotations

import os
from typing import Dict, List, Literal, Optional

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cbst_mx.errors import ConfigError
from cbst_mx.strict_yaml import LARGEST_CONTENT, one_sentence, parse_value, read_yaml


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
        ({"part": {"portion": "a" * 100}}, f"key 'part.portion' must be a number, got '{'a' * 56}..."),
    ],
)
def test_one_sentence(content, expected):
    assert sentence(content) == f"x.yaml: {expected}"


def test_several_problems_are_numbered_lines_unknown_keys_first():
    # A misspelt key is also a missing one: the misspelling is what helps.
    assert sentence({"part": {"portoin": 0.2, "rounds": 0}, "parts": 3}) == (
        "x.yaml has 4 problems:\n"
        "  1. unknown key 'part.portoin' (allowed: portion, rounds, method, flip)\n"
        "  2. key 'part.portion' is missing (it must be a number in (0, 1])\n"
        "  3. key 'part.rounds' must be greater than or equal to 1, got 0\n"
        "  4. key 'parts' must be a list, got 3"
    )


def test_of_many_problems_the_first_twenty_are_told():
    lines = sentence({"part": GOOD, "parts": [{"portion": 2.0}] * 1030}).splitlines()
    assert lines[0] == "x.yaml has 1,030 problems:"
    assert lines[20] == "  20. key 'parts[19].portion' must be in (0, 1], got 2.0"
    assert lines[21:] == ["  and 1,010 more"]


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
        ("hunter2\n", " must hold a mapping of keys to values, got a text"),
        ("- hunter2\n", " must hold a mapping of keys to values, got a list"),
        ("- [hunter2]\n", " must hold a mapping of keys to values, got a list"),
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


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


HARD_TEXTS = [
    (LAUGHS, f"more than {LARGEST_CONTENT:,} characters once every alias is written out"),
    (f"t: &t {'x' * 9999}\nall: [{', '.join(['*t '] * 999)}]\n", "once every alias is written out"),
    ("a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)), "alias"),
    ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 90)), "nested more than 50 levels"),
    ("a: &a [*a]\n", "an alias leads back into itself"),
    ("a: &a {b: *a}\n", "an alias leads back into itself"),
    ("a: " + "[" * 5000 + "]" * 5000, "nested more than 50 levels deep"),
    ("a: " + "{b: " * 2000, "nested more than 50 levels deep"),
    ("".join(f"{' ' * i}a:\n" for i in range(900)), "nested more than 50 levels deep"),
    ("a: 2020-13-45\n", "line 1: '2020-13-45' is no date: put it in quotes if it is a text (month must be in 1..12)"),
    ("a: 0x_\n", "line 1: '0x_' is no integer that can be read"),
    ("\na: 0b_\n", "line 2: '0b_' is no integer"),
    (f"a: {'9' * 5000}\n", "is no integer that can be read (too many digits)"),
    ("a: !!int ''\n", "line 1: '' is no integer"),
    ("a: !!bool x\n", "line 1: 'x' is no true or false"),
    ("a: !!timestamp x\n", "line 1: 'x' is no date"),
    ("a: !!float x\n", "line 1: 'x' is no number"),
    ("a: !!python/name:os.system\n", "could not determine a constructor"),
    ("a: !!omap x\n", "expected a sequence"),
    ("? [a, b]\n: 1\n", "unhashable"),
    ("a: *unknown\n", "undefined alias"),
    ("a: 1\n--- \nb: 1\n", "but found another document"),
    ("a: \0\n", "special characters are not allowed"),
]


@pytest.mark.parametrize(("content", "reason"), HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_what_text_can_do_to_a_parser_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250
    with pytest.raises(ConfigError) as error:
        parse_value(content)
    assert len(str(error.value)) < 350


def test_all_values_that_cannot_be_read_are_told(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 2020-13-45\nb: 0x_\na: 1\n")
    with pytest.raises(ConfigError, match="has 3 problems") as error:
        read_yaml(path)
    assert [line[:14] for line in str(error.value).splitlines()[1:]] == [
        "  1. line 3: k",
        "  2. line 1: '",
        "  3. line 2: '",
    ]


def test_aliases_and_merges_of_a_usual_size_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("base: &b {rate: 1e-3, list: [1, 2]}\nother: {<<: *b, rate: 2.0}\nagain: *b\n")
    assert read_yaml(path)["other"] == {"rate": 2.0, "list": [1, 2]}


def test_files_without_an_end_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="/dev/zero cannot be read: it is no ordinary file but a device"):
        read_yaml("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe cannot be read: it is no ordinary file but a named pipe"):
        read_yaml(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="loop cannot be read"):
        read_yaml(tmp_path / "loop")
    with pytest.raises(ConfigError, match="cannot be read: embedded null"):
        read_yaml("a\0b")
    with pytest.raises(ConfigError, match="cannot be read: File name too long") as error:
        read_yaml("a" * 5000)
    assert len(str(error.value)) < 400


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 1}


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
