"""The deployment profile as a file: YAML that a person can read and that a program need not trust.

Written: the schema's order, six significant digits, one record a line, which greps and diffs well. Read: size limit,
plain data only, schema version, schema, checksum, in that order, so that the first sentence is the most useful one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from apex4_probe.deployment import SCHEMA_VERSION, Profile, json_schema
from apex4_probe.errors import ApexError, ProfileError
from apex4_probe.files import read_limited, write_whole
from apex4_probe.strict_yaml import parse_mapping

MAX_BYTES = 8 * 2**20  # ten times a profile with every co-issue curve of --full
SIGNIFICANT_DIGITS = 6  # figures per clock repeat to 0.1 %: three digits more than any of them can support
_HEADER = "# Deployment profile of apex4-probe. Its checksum covers every field: an edited file is refused.\n"


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile. Raises ProfileError naming the field, and both values where two disagree."""
    try:
        return parse_profile(read_limited(path, MAX_BYTES), os.fspath(path))
    except ProfileError:
        raise
    except ApexError as error:
        raise ProfileError(str(error)) from None


def parse_profile(text: str, where: str = "profile") -> Profile:
    """A profile from its YAML; ``where`` names it in messages. Raises ProfileError like load_profile."""
    try:
        fields = parse_mapping(text, where)
    except ApexError as error:
        raise ProfileError(str(error)) from None
    _check_version(fields.get("schema_version"), where)
    try:
        # By way of JSON: its strict mode takes a list for a tuple and an integer for a float, and nothing else.
        profile = Profile.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise ProfileError(f"{where}: {_first_of(error)}") from None
    stated, actual = profile.checksum, checksum(fields)
    if not stated:
        raise ProfileError(f"{where}: checksum is missing: the file is cut off, or was not written by apex4-probe")
    if stated != actual:
        raise ProfileError(
            f"{where}: checksum is {stated!r:.66} in the file, but its contents give {actual!r}: it was damaged or "
            "edited; take an undamaged copy or run apex4-probe again"
        )
    return profile


def write_profile(profile: Profile, path: str | os.PathLike[str], force: bool = False) -> Profile:
    """Write a profile whole or not at all and return it as a reader will get it (rounded, with its checksum).

    Raises ProfileError where that would replace measurements by predictions and ``force`` is not set, ApexError where
    the file cannot be written.
    """
    refuse_to_lose_measurements(profile, path, force)
    sealed = seal(profile)
    write_whole(path, profile_text(sealed))
    return sealed


def refuse_to_lose_measurements(profile: Profile, path: str | os.PathLike[str], force: bool) -> None:
    """Raise ProfileError where a predicted ``profile`` would overwrite anything but another predicted one."""
    if profile.origin == "measured" or force or not Path(path).exists():
        return
    try:
        origin = parse_mapping(read_limited(path, MAX_BYTES), str(path)).get("origin")
    except ApexError:
        origin = None  # whatever it is, it is not known to be worthless
    if origin != "predicted":
        what = "a measured profile" if origin == "measured" else "not a predicted profile"
        raise ProfileError(
            f"{path} is {what} and would be overwritten by a predicted one: choose another path, or pass --force"
        )


def seal(profile: Profile) -> Profile:
    """The profile as it is written: floats rounded, then the checksum of that. Sealing twice changes nothing."""
    fields = _rounded(profile.model_dump(exclude_none=True, exclude={"checksum"}))
    return Profile.model_validate({**fields, "checksum": checksum(fields)})


def profile_text(profile: Profile) -> str:
    """The file's text for a profile, sealed or not."""
    fields = seal(profile).model_dump(exclude_unset=True)
    return _HEADER + "".join(
        yaml.dump({name: _laid_out(value)}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=MAX_BYTES)
        for name, value in fields.items()
    )


def checksum(fields: Mapping[str, Any]) -> str:
    """sha256, in hexadecimal, over the canonical JSON of every field but ``checksum``.

    Canonical: keys sorted, no white space, ASCII with \\u escapes, numbers as JavaScript prints integers and Python
    floats (5.0 is 5), so that a reader in another language can compute it.
    """
    content = _integers_bare({name: value for name, value in fields.items() if name != "checksum"})
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def checksum_of(profile: Profile) -> str:
    """What a loaded or sealed profile's checksum must be; fields that its file did not hold do not count."""
    return checksum(profile.model_dump(exclude_unset=True))


def json_schema_text() -> str:
    """The contents of ``profiles/profile.schema.json``."""
    return json.dumps(json_schema(), indent=1) + "\n"


def _integers_bare(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value  # 2^53: exact in a double
    if isinstance(value, Mapping):
        return {key: _integers_bare(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_integers_bare(item) for item in value]
    return value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else value
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


class _OnOneLine(dict[str, Any]):
    """A mapping written in flow style."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """A class of our own to hang the two rules below on."""


_Dumper.add_representer(
    _OnOneLine, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=True)
)
# YAML 1.1, which PyYAML writes, takes 1e5 for text and would not quote it; YAML 1.2, and our reader, take a number.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[.0-9]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _laid_out(value: Any, listed: bool = False) -> Any:
    """Records of a list on one line each, unless they hold lists of records themselves."""
    if isinstance(value, list):
        return [_laid_out(item, listed=True) for item in value]
    if isinstance(value, dict):
        if listed and not any(_holds_records(item) for item in value.values()):
            return _OnOneLine(value)
        return {key: _laid_out(item) for key, item in value.items()}
    return value


def _holds_records(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _check_version(found: Any, where: str) -> None:
    ours = SCHEMA_VERSION.partition(".")[0]
    if found is None:
        raise ProfileError(f"{where}: schema_version is missing; this tool reads {ours}.x: is it a deployment profile?")
    if isinstance(found, str) and found.partition(".")[0] != ours:
        raise ProfileError(
            f"{where}: schema_version is {reprlib.repr(found)}, and this tool reads {ours}.x: "
            "use the apex4-probe that wrote it, or run this one again"
        )


def _first_of(error: ValidationError) -> str:
    """The first of the errors as "path: problem, found …", and how many more there are."""
    details = error.errors(include_url=False)
    first = details[0]
    more = f" ({len(details) - 1} more like it)" if len(details) > 1 else ""
    return f"{_field_path(first['loc'])}: {_problem(first)}{more}"


def _problem(details: ErrorDetails) -> str:
    if details["type"] == "missing":
        return "is missing"
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error":
        return message
    found = details["input"]
    kind = {dict: "a mapping", list: "a list", type(None): "nothing"}.get(type(found)) or reprlib.repr(found)
    return f"{message[:1].lower()}{message[1:]}, found {kind}"


def _field_path(location: Iterable[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if part.isidentifier() and len(part) < 60 else f"[{reprlib.repr(part)}]"
    return path.removeprefix(".") or "profile"
