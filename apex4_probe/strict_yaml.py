"""YAML that holds plain data and nothing else: what a file from a stranger may contain.

Built from the parser's events instead of its constructor, so that what is refused (anchors and aliases, hence alias
bombs; tags; duplicate keys; depth; NaN and infinity) is refused with its line before anything has grown. Plain scalars
follow YAML 1.2's core schema: null, true / false, decimal integers, floats; everything else is text, dates included.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn

import yaml

from apex4_probe.errors import ApexError

MAX_DEPTH = 32  # a profile nests six deep
_MAX_DIGITS = 64  # int() is quadratic in the digits; 2^64 has 20

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser, 20 times faster, where PyYAML has it


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """The one document in ``text``, a mapping with text keys, as dict, list, str, int, float, bool and None.

    ``where`` names the source in messages. Raises ApexError, naming the line, for anything else.
    """
    try:
        return _Builder(where).build(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or "syntax error"
        raise ApexError(f"{where}{line}: not valid YAML ({problem}); is the file cut off?") from None
    except yaml.YAMLError as error:
        problem = getattr(error, "reason", None) or "unreadable"
        raise ApexError(f"{where}: not valid YAML ({problem}); is it the right file?") from None


class _Builder:
    def __init__(self, where: str) -> None:
        self._where = where
        self._open: list[dict[str, Any] | list[Any]] = []  # containers begun and not ended, outermost first
        self._keys: list[str | None] = []  # beside each: the key that waits for its value
        self._root: Any = None
        self._documents = 0

    def build(self, text: str) -> dict[str, Any]:
        for event in yaml.parse(text, Loader=_LOADER):
            self._take(event)
        if not isinstance(self._root, dict):
            found = {type(None): "nothing", list: "a list"}.get(type(self._root), "a single value")
            raise ApexError(f"{self._where}: expected names and values, found {found}: is it the right file?")
        return self._root

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self._refuse(event, "anchors and aliases (& and *) are not accepted: write the value out")
        if isinstance(event, yaml.ScalarEvent):
            self._place(event, self._scalar(event))
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            if not event.implicit:
                self._refuse(event, f"the tag {event.tag!r:.60} is not accepted: only plain data is")
            if len(self._open) >= MAX_DEPTH:
                self._refuse(event, f"nested more than {MAX_DEPTH} deep")
            container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            self._place(event, container)
            self._open.append(container)
            self._keys.append(None)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._open.pop()
            self._keys.pop()
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._refuse(event, "a second document begins: one is expected")

    def _place(self, event: yaml.Event, value: Any) -> None:
        if not self._open:
            self._root = value
            return
        parent = self._open[-1]
        if isinstance(parent, list):
            parent.append(value)
        elif (key := self._keys[-1]) is not None:
            parent[key] = value
            self._keys[-1] = None
        elif not isinstance(event, yaml.ScalarEvent):
            self._refuse(event, "a list or mapping cannot be a key")
        elif event.value in parent:
            self._refuse(event, f"the key {event.value!r:.60} appears twice")
        else:
            self._keys[-1] = event.value  # as it is written: a key is text, never a number

    def _scalar(self, event: yaml.ScalarEvent) -> str | int | float | bool | None:
        text: str = event.value
        plain, quoted = event.implicit
        if not plain:
            if not quoted:
                self._refuse(event, f"the tag {event.tag!r:.60} is not accepted: only plain data is")
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                self._refuse(event, f"a number of {len(text)} digits")
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isfinite(number):
                return number
            self._refuse(event, f"{text:.60} is too large for a number")
        if _NOT_FINITE.fullmatch(text):
            self._refuse(event, f"{text} is not a number: leave out what is not known")
        return text

    def _refuse(self, event: yaml.Event, problem: str) -> NoReturn:
        mark = event.start_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ApexError(f"{self._where}{line}: {problem}")
