"""What is written is read back, to the digit; what was cut, edited, inflated or forged is refused in one sentence."""

from __future__ import annotations

import copy
import hashlib
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from recorded_host import link, unusable
from sample_profile import predicted_profile, sample_co_issue, sample_profile

from apex4_probe.deployment import Profile
from apex4_probe.errors import ApexError, ProfileError
from apex4_probe.profile_file import (
    MAX_BYTES,
    checksum,
    checksum_of,
    load_profile,
    parse_profile,
    profile_text,
    seal,
    write_profile,
)
from apex4_probe.strict_yaml import parse_mapping
from apex4_probe.verification import compare

MEASURED = Path(__file__).resolve().parents[2] / "profiles" / "measured"
HOSTILE = [
    "",
    " ",
    "null",
    "~",
    "no",
    "1e5",
    "1.5",
    ".nan",
    "2026-02-03",
    "<<",
    "=",
    "*x",
    "&x",
    "!!str",
    "- a",
    "a: b",
    "# no comment",
    "'\"",
    "trailing ",
    "\n",
    "two\nlines\n\n",
    "\ttab",
    "\x1b[31mred\x1b[0m",
    "\x00\x07\x7f\x85\u2028\ufeff\uffff",
    "<script>alert(1)</script>",
    "ρ – × 漢字 \U0001f600",
    "x" * 10_000,
    "word " * 2_000,
    "[", "{", "]", "}", ",", "?", "@", "`", "%", "|", ">",
]  # fmt: skip


def refused(text: str, *parts: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "p.yaml")
    message = str(caught.value)
    assert message.startswith("p.yaml")
    assert "\n" not in message
    assert len(message) < 400
    for part in parts:
        assert part in message
    return message


def fields_of(profile: Profile) -> dict[str, Any]:
    return parse_mapping(profile_text(profile), "own")


def as_text(fields: dict[str, Any]) -> str:
    """YAML of fields as another program might write it, with the checksum that fits them."""
    return yaml.safe_dump({**fields, "checksum": checksum(fields)}, allow_unicode=True)


def random_profile(seed: int) -> Profile:
    """A profile with figures of every magnitude and strings of every kind, wherever the schema takes them."""
    rng = random.Random(seed)

    def figure() -> float:
        return rng.choice(
            [0.0, 1.0, rng.random(), rng.uniform(1, 1e4), 10 ** rng.uniform(-12, 17), float(rng.randrange(10**6))]
        )

    def words() -> str:
        return rng.choice([*HOSTILE, "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(40)))])

    profile = sample_profile()
    measurements = [
        record.model_copy(
            update={
                "name": words(),
                "value": figure() if record.unsupported is None else None,
                "spread": figure(),
                "instruction": words(),
                "throttle": [words() for _ in range(rng.randrange(3))],
                "configuration": {words(): rng.choice([figure(), words(), rng.randrange(10**9)]) for _ in range(3)},
                "source": rng.choice([None, words()]),
            }
        )
        for record in profile.measurements
    ]
    return sample_profile(
        measurements=measurements,
        co_issue=rng.sample(profile.co_issue, rng.randrange(5)),
        notes=[words() for _ in range(rng.randrange(4))],
        rejected=[{"variant": words(), "why": words()}],
        device=profile.device.model_copy(update={"name": words(), "l2_mib": figure(), "ecc": None}),
        w4a4=None,
        layers=[],
    )


@pytest.mark.parametrize("seed", range(40))
def test_round_trip(seed: int, tmp_path: Path) -> None:
    profile = random_profile(seed)
    written = write_profile(profile, tmp_path / "profile.yaml")
    loaded = load_profile(tmp_path / "profile.yaml")
    assert loaded == written == seal(profile)
    assert profile_text(loaded) == (tmp_path / "profile.yaml").read_text("utf-8")
    assert loaded.checksum == checksum_of(loaded)
    for before, after in zip(profile.measurements, loaded.measurements, strict=True):
        assert after.name == before.name
        assert after.configuration.keys() == before.configuration.keys()
        if before.value is not None and after.value is not None:
            assert math.isclose(after.value, before.value, rel_tol=5.1e-6)  # six significant digits


@pytest.mark.parametrize("seed", range(10))
def test_other_yaml_readers_see_the_same(seed: int) -> None:
    text = profile_text(random_profile(seed))
    assert yaml.safe_load(text) == parse_mapping(text, "own")


def test_links_are_read_back_and_an_older_reader_needs_not_know_them() -> None:
    profile = sample_profile(links=[link(1, 372.123456789), unusable(2)])
    loaded = parse_profile(profile_text(profile))
    assert loaded == seal(profile)
    assert [(one.peer, one.to_peer_gb_per_s) for one in loaded.links] == [(1, 372.123), (2, None)]
    assert loaded.checksum == checksum_of(loaded)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_file_of_an_earlier_minor_version_is_read_and_holds(version: str) -> None:
    fields = fields_of(sample_profile())
    later = {"1.0": ("kernels", "gemm_timings", "links"), "1.1": ("links",)}[version]
    profile = parse_profile(as_text({name: value for name, value in fields.items() if name not in later}
                                    | {"schema_version": version}))  # fmt: skip
    assert profile.links == [] and profile.schema_version == version
    assert profile.measurements == seal(sample_profile()).measurements
    assert not compare(profile, profile.device, profile.environment).hard


def test_every_shipped_profile_is_read_whatever_minor_version_wrote_it() -> None:
    paths = sorted(MEASURED.glob("*/profile.yaml"))
    assert len(paths) >= 2
    for path in paths:
        profile = load_profile(path)
        assert not compare(profile, profile.device, profile.environment).hard, path


def test_rounded_before_the_checksum() -> None:
    profile = sample_profile(rho={"int8": {"datasheet": 29.537313432835823, "per_clock": 123456789.0, "usable": True}})
    sealed = seal(profile)
    assert (sealed.rho["int8"].datasheet, sealed.rho["int8"].per_clock) == (29.5373, 123457000.0)
    assert seal(sealed) == sealed
    assert parse_profile(profile_text(profile)) == sealed


def test_layout_for_a_person() -> None:
    lines = profile_text(sample_profile()).splitlines()
    assert lines[0].startswith("# Deployment profile of apex4-probe.")
    assert lines[1:5] == [
        "schema_version: '1.2'",
        "tool_version: 0.1.0",
        "created: '2026-02-03T10:15:00Z'",
        "origin: measured",
    ]
    assert "  sm_count: 132" in lines
    (i2f,) = [line for line in lines if line.startswith("- {name: i2f,")]
    assert "value: 16.5964, unit: Tinstr/s, per_clk_per_sm: 63.5" in i2f
    assert i2f.endswith("origin: measured}")
    assert lines[-1] == f"checksum: {seal(sample_profile()).checksum}"
    top = [line.split(":")[0] for line in lines[1:] if line[0] not in " -"]
    assert top == [name for name in Profile.model_fields if name in top]


def test_canonical_form_of_the_checksum() -> None:
    """What the docstring promises to a reader in another language."""
    expected = hashlib.sha256(rb'{"a":["\u2013",null,0.1,true],"b":5,"c":{"x":1e-07,"y":-3}}').hexdigest()
    fields = {"b": 5.0, "checksum": "ignored", "a": ["–", None, 0.1, True], "c": {"y": -3, "x": 1e-7}}
    assert checksum(fields) == expected


def test_every_co_issue_curve_loads_quickly_and_stays_small(tmp_path: Path) -> None:
    curves = sample_co_issue()
    profile = sample_profile(co_issue=[curves[i % len(curves)] for i in range(2500)])
    write_profile(profile, tmp_path / "profile.yaml")
    assert (tmp_path / "profile.yaml").stat().st_size < 1_500_000
    start = time.process_time()
    loaded = load_profile(tmp_path / "profile.yaml")
    assert time.process_time() - start < 1.0
    assert len(loaded.co_issue) == 2500


def test_cut_anywhere_it_is_refused() -> None:
    text = profile_text(sample_profile())
    rng = random.Random(1)
    line_ends = [at + 1 for at, character in enumerate(text) if character == "\n"]
    cuts = {0, 1, len(text) - 2, *line_ends[:-1], *(rng.randrange(len(text) - 1) for _ in range(100))}
    for cut in rng.sample(sorted(cuts), 120):
        refused(text[:cut])
    refused(text[: text.index("checksum:")], "checksum is missing", "cut off")


def test_one_changed_byte_is_noticed() -> None:
    profile = seal(sample_profile())
    text = profile_text(profile)
    start = text.index("\n")  # after the comment
    rng = random.Random(2)
    for _ in range(150):
        at = rng.randrange(start, len(text))
        changed = text[:at] + chr(rng.randrange(32, 127)) + text[at + 1 :]
        try:
            assert parse_profile(changed) == profile  # a quote or a space that means the same
        except ProfileError as error:
            assert "\n" not in str(error)


def test_an_edited_figure_names_both_checksums() -> None:
    text = profile_text(sample_profile())
    edited = text.replace("value: 47.8,", "value: 1247.8,")
    assert edited != text
    refused(edited, seal(sample_profile()).checksum, checksum(parse_mapping(edited, "edited")), "checksum is")


Change = Callable[[dict[str, Any]], object]
NO_INTEGER = "input should be a valid integer"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.pop("decision"), "p.yaml: decision: is missing"),
        (lambda f: f["device"].pop("sm_count"), "p.yaml: device.sm_count: is missing"),
        (lambda f: f["device"].update(sm_count="many"), f"p.yaml: device.sm_count: {NO_INTEGER}, found 'many'"),
        (lambda f: f["device"].update(sm_count="132"), f"p.yaml: device.sm_count: {NO_INTEGER}, found '132'"),
        (lambda f: f["device"].update(sm_count=0), "p.yaml: device.sm_count: input should be greater than 0, found 0"),
        (lambda f: f["device"].update(ecc="yes"), "p.yaml: device.ecc: input should be a valid boolean, found 'yes'"),
        (lambda f: f.update(device=[]), "p.yaml: device: input should be an object, found a list"),
        (lambda f: f.update(measurements={}), "p.yaml: measurements: input should be a valid array, found a mapping"),
        (lambda f: f["measurements"][3].pop("unit"), "p.yaml: measurements[3].unit: is missing"),
        (lambda f: f["measurements"][3].pop("value"), "p.yaml: measurements[3]: 'wgmma.s8.m64n256k32.ss' has neither"),
        (lambda f: f["co_issue"][7].update(k=True), f"p.yaml: co_issue[7].k: {NO_INTEGER}, found True"),
        (lambda f: f["decision"].update(format="w2a2"), "p.yaml: decision.format: input should be 'fp16', 'fp8',"),
        (lambda f: f["w4a4"].update(speedup_fp16_interval=[1.0]), "p.yaml: w4a4.speedup_fp16_interval[1]: is missing"),
        (lambda f: f.update(created=None), "p.yaml: created: input should be a valid string, found nothing"),
        (lambda f: f.update(origin="predicted"), 'p.yaml: profile: origin is "predicted", but measurements'),
        (lambda f: f.pop("schema_version"), "p.yaml: schema_version is missing; this tool reads 1.x"),
        (lambda f: f.update(schema_version="2.0"), "p.yaml: schema_version is '2.0', and this tool reads 1.x"),
        (lambda f: f.update(schema_version="10.0"), "p.yaml: schema_version is '10.0', and this tool reads 1.x"),
        (lambda f: f.update(schema_version=1.0), "p.yaml: schema_version: input should be a valid string, found 1.0"),
        (lambda f: f.update(schema_version="1"), "p.yaml: schema_version: string should match pattern"),
        (lambda f: f.update(created="x" * 10_000, origin=3), "p.yaml: origin: input should be 'measured' or"),
        (lambda f: f["device"].update(memory_mib="x" * 10_000), f"p.yaml: device.memory_mib: {NO_INTEGER}, found 'xxx"),
        (lambda f: f["measurements"][0].update(name="\x1b" * 10_000, value=None), "p.yaml: measurements[0]: '\\x1b"),
        (lambda f: f.update(rho={"\x1b" * 10_000: {"usable": False}}), "p.yaml: rho['\\x1b"),
    ],
)  # fmt: skip
def test_the_first_wrong_field_is_named_with_what_was_found(change: Change, sentence: str) -> None:
    fields = fields_of(sample_profile())
    change(fields)
    assert refused(as_text(fields)).startswith(sentence)


def test_how_many_more_fields_are_wrong() -> None:
    fields = fields_of(sample_profile())
    for record in fields["co_issue"]:
        record["k"] = "three"
    message = refused(as_text(fields), "co_issue[0].k: input should be a valid integer, found 'three'")
    assert message.endswith(f"({len(fields['co_issue']) - 1} more like it)")


def test_numbers_as_other_writers_print_them() -> None:
    """5 for 5.0 and a list for a pair are the same profile, with the same checksum."""
    fields = copy.deepcopy(fields_of(sample_profile()))
    fields["device"]["power_limit_w"] = 700
    text = yaml.safe_dump(fields)
    assert "power_limit_w: 700\n" in text
    assert parse_profile(text) == seal(sample_profile())


def test_a_newer_minor_schema_is_read_and_its_checksum_holds() -> None:
    fields = fields_of(sample_profile())
    fields["schema_version"] = "1.7"
    fields["carbon"] = {"grams": 3.5}
    fields["device"]["nvlink"] = 18
    profile = parse_profile(as_text(fields))
    assert profile.schema_version == "1.7"
    assert profile.device == sample_profile().device
    fields["carbon"]["grams"] = 0.1
    refused(yaml.safe_dump(fields), "checksum is")  # fields that we do not know are covered all the same


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))
    for content, part in [
        (b"", "found nothing"),
        (b"\xff\xfe\x00s", "not UTF-8 text (byte 0)"),
        (b"gr\xfcn: 1", "not UTF-8 text (byte 2)"),
        (bomb.encode(), "anchors and aliases"),
        (b"x: " + b"y" * MAX_BYTES, "larger than 8,388,608 bytes"),
        (b"model: llama\nlayers: 32\n", "schema_version is missing"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ProfileError) as caught:
            load_profile(path)
        assert str(caught.value).startswith(str(path))
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    for absent, part in [(tmp_path / "absent.yaml", "does not exist"), (tmp_path, "is a folder")]:
        with pytest.raises(ProfileError, match=part):
            load_profile(str(absent))


def test_a_measured_profile_is_not_lost_to_a_predicted_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    measured = write_profile(sample_profile(), path)
    with pytest.raises(
        ProfileError, match=r"is a measured profile and would be overwritten by a predicted one.*--force"
    ):
        write_profile(predicted_profile(), path)
    assert load_profile(path) == measured
    assert write_profile(predicted_profile(), path, force=True).origin == "predicted"
    assert write_profile(predicted_profile(), path) == load_profile(path)
    assert write_profile(sample_profile(), path) == load_profile(path) == measured


@pytest.mark.parametrize(
    "content", ["origin: measured\n", "schema_version: '9.0'\norigin: measured\n", "torn: [", "a: 1\n"]
)
def test_a_file_that_may_hold_measurements_is_not_lost_either(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(content)
    with pytest.raises(ProfileError, match="would be overwritten by a predicted one"):
        write_profile(predicted_profile(), path)
    assert path.read_text() == content
    assert write_profile(sample_profile(), path) == load_profile(path)


def test_a_failed_write_leaves_the_previous_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.yaml"
    before = write_profile(sample_profile(), path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ApexError, match="no space left on device"):
        write_profile(sample_profile(notes=["new"]), path)
    assert load_profile(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_known_has_no_line() -> None:
    profile = sample_profile(device=sample_profile().device.model_copy(update={"ecc": None}))
    assert "ecc" not in fields_of(profile)["device"]
    assert parse_profile(profile_text(profile)).device.ecc is None


def test_a_hostile_checksum_is_shown_as_text() -> None:
    fields = {**fields_of(sample_profile()), "checksum": "\x1b]" * 5_000}
    refused(yaml.safe_dump(fields), "p.yaml: checksum is '\\x1b]\\x1b]")
