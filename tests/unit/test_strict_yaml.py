"""Plain data is read as YAML 1.2 reads it; everything else is refused with its line."""

from __future__ import annotations

import time

import pytest

from apex4_probe.errors import ApexError
from apex4_probe.strict_yaml import MAX_DEPTH, parse_mapping


def test_plain_data() -> None:
    text = """
# comment
text: plain words
quoted: '1.5'
version: "13.0"
integer: -12
float: 1.5
exponent: 1e-05
null_value: null
empty:
flags: [true, false]
nested: {a: {b: [1, 2.5, x]}}
block:
- name: first
- name: second
folded: >-
  two
  words
"""
    assert parse_mapping(text, "file") == {
        "text": "plain words",
        "quoted": "1.5",
        "version": "13.0",
        "integer": -12,
        "float": 1.5,
        "exponent": 1e-05,
        "null_value": None,
        "empty": None,
        "flags": [True, False],
        "nested": {"a": {"b": [1, 2.5, "x"]}},
        "block": [{"name": "first"}, {"name": "second"}],
        "folded": "two words",
    }


@pytest.mark.parametrize(
    "text", ["no", "off", "2026-02-03", "2026-02-03T10:15:00Z", "1:30", "0x10", "1_000", "0o17", "<<"]
)
def test_what_yaml_1_1_takes_for_something_else_is_text(text: str) -> None:
    assert parse_mapping(f"key: {text}", "file") == {"key": text}


def test_keys_are_text_as_written() -> None:
    assert parse_mapping("{1: a, true: b, 1.0: c}", "file") == {"1": "a", "true": "b", "1.0": "c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: &x 2\n", "file, line 2: anchors and aliases (& and *) are not accepted: write the value out"),
        ("a: &x [1]\nb: *x\n", "file, line 1: anchors and aliases (& and *) are not accepted: write the value out"),
        ("a: *x\n", "file, line 1: anchors and aliases (& and *) are not accepted: write the value out"),
        ("a: !!python/object/apply:os.system [ls]", "file, line 1: the tag"),
        ("a: !!str 5", "file, line 1: the tag"),
        ("a: 1\nb: 2\na: 3\n", "file, line 3: the key 'a' appears twice"),
        ("x:\n  - {a: 1, 'a': 2}\n", "file, line 2: the key 'a' appears twice"),
        ("? [1, 2]\n: 3\n", "file, line 1: a list or mapping cannot be a key"),
        ("a: .nan", "file, line 1: .nan is not a number: leave out what is not known"),
        ("a: [1, -.inf]", "file, line 1: -.inf is not a number: leave out what is not known"),
        ("a: 1e999", "file, line 1: 1e999 is too large for a number"),
        ("a: " + "9" * 5000, "file, line 1: a number of 5000 digits"),
        ("a: 1\n---\nb: 2\n", "file, line 2: a second document begins: one is expected"),
        ("", "file: expected names and values, found nothing: is it the right file?"),
        ("- 1\n- 2\n", "file: expected names and values, found a list: is it the right file?"),
        ("just words", "file: expected names and values, found a single value: is it the right file?"),
        ("a: [1, 2\nb: }\n", "file, line 2: not valid YAML ("),
        ("a: 'open", "file, line 1: not valid YAML ("),
        ("a: b: c", "file, line 1: not valid YAML ("),
        ("a: \x00", "file: not valid YAML ("),
        ("a: \x1b[31m", "file: not valid YAML ("),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ApexError) as caught:
        parse_mapping(text, "file")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_depth_limit() -> None:
    inside = MAX_DEPTH - 1  # the mapping itself is one level
    nested = parse_mapping("a: " + "[" * inside + "]" * inside, "file")
    assert str(nested) == "{'a': " + "[" * inside + "]" * inside + "}"
    with pytest.raises(ApexError, match="nested more than 32 deep"):
        parse_mapping("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "file")


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64)),
        "a: " + "[" * 4_000_000,
        "{" * 4_000_000,
        "- " * 4_000_000,
        "? " * 4_000_000,
        "a: &" + "x" * 4_000_000,
    ],
    ids=["alias bomb", "brackets", "braces", "dashes", "question marks", "long anchor"],
)
def test_bombs_are_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ApexError) as caught:
        parse_mapping(text, "file")
    assert time.process_time() - start < 2.0
    assert len(str(caught.value)) < 300
