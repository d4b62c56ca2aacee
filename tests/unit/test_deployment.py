"""The schema refuses what no honest writer produces, and its JSON Schema is the one that is shipped."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from recorded_host import link, unusable
from sample_profile import predicted_profile, sample_co_issue, sample_measurements, sample_profile

from apex4_probe.deployment import CoIssue, KernelTable, Measurement, PeerLink, Profile, RhoFigure, json_schema
from apex4_probe.profile_file import json_schema_text, profile_text


def measurement(**changes: Any) -> Measurement:
    fields = {"name": "ffma", "instruction": "FFMA", "value": 64.3, "unit": "TFLOPS", "origin": "measured"}
    return Measurement.model_validate({**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": None}, "'ffma' has neither a value nor the reason why not"),
        ({"unsupported": "no such instruction"}, "'ffma' has a value and is called unsupported"),
        ({"value": -1.0}, "greater than or equal to 0"),
        ({"value": float("nan")}, "finite number"),
        ({"value": float("inf")}, "finite number"),
        ({"peak_fraction": 1.0201}, "less than or equal to 1.02"),
        ({"spread": -0.001}, "greater than or equal to 0"),
        ({"samples": -1}, "greater than or equal to 0"),
        ({"origin": "guessed"}, "'measured', 'predicted' or 'datasheet'"),
    ],
)
def test_a_dishonest_measurement_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        measurement(**changes)


def test_what_is_at_the_edge_is_accepted() -> None:
    assert measurement(peak_fraction=1.02, spread=0.0, value=0.0).peak_fraction == 1.02
    assert measurement(value=None, unsupported="needs 12.x").value is None


def test_a_co_issue_point_has_no_negative_spread() -> None:
    fields = sample_co_issue()[1].model_dump()
    with pytest.raises(ValidationError, match="spread"):
        CoIssue.model_validate({**fields, "spread": -0.1})


def test_a_measured_profile_holds_a_measurement() -> None:
    figures = [figure.model_copy(update={"origin": "datasheet"}) for figure in sample_measurements()]
    blank = next(figure for figure in sample_measurements() if figure.value is None)  # measured, but nothing came of it
    for without in ([], figures, [*figures, blank]):
        with pytest.raises(ValidationError, match='origin is "measured", but no measurement is'):
            sample_profile(measurements=without)
    assert len(sample_profile(measurements=[*figures, measurement()]).measurements) == len(figures) + 1


def test_a_predicted_profile_holds_nothing_measured() -> None:
    predicted, measured = predicted_profile(), sample_profile()
    layers = list(predicted.layers)
    timed = layers[0].times[0].model_copy(update={"origin": "measured"})
    half_measured = predicted.balance[0].model_copy(update={"overlap_origin": "measured"})
    for field, value, place in [
        ("measurements", [*predicted.measurements, measurement()], "measurements: 'ffma'"),
        ("co_issue", [*predicted.co_issue, measured.co_issue[2]], "co_issue: 'wgmma.s8' 'ffma' k = 2"),
        ("balance", [*predicted.balance[1:], measured.balance[0]], "balance: 'none'"),
        ("balance", [half_measured], "balance: 'none'"),
        ("rho", {"int8": RhoFigure(measured=29.6, usable=True)}, "rho: int8"),
        ("layers", [layers[0].model_copy(update={"times": [timed]})], "layers: q"),
        ("kernels", measured.kernels[:1], "kernels: 'w4a8.small.g128i'"),
        ("gemm_timings", measured.gemm_timings[:1], "gemm_timings: 'fp16'"),
        ("links", [link(3)], "links: to GPU 3"),
    ]:
        with pytest.raises(ValidationError) as caught:
            predicted_profile(**{field: value})
        assert f'origin is "predicted", but {place} is marked measured' in str(caught.value)


def test_a_kernel_serves_up_to_the_m_that_it_was_tuned_for_and_the_last_one_above() -> None:
    (table,) = [t for t in sample_profile().kernels if (t.n, t.k, t.granularity) == (28672, 4096, "g128i")]
    assert [kernel.m_max for kernel in table.kernels] == [16, 2048]
    chosen = {m: table.for_tokens(m).variant for m in (1, 16, 17, 64, 2048, 100_000)}
    assert chosen == {
        1: "w4a8.small.g128i",
        16: "w4a8.small.g128i",
        17: "w4a8.mma.g128i",  # the nearest is the small kernel at 16, which nobody timed beyond it
        64: "w4a8.mma.g128i",
        2048: "w4a8.mma.g128i",
        100_000: "w4a8.mma.g128i",
    }


@pytest.mark.parametrize("order", [[1, 0], [0, 0], []])
def test_a_kernel_table_ascends_and_holds_something(order: list[int]) -> None:
    table = sample_profile().kernels[0].model_dump()
    with pytest.raises(ValidationError, match="m_max does not ascend" if order else "at least 1 item"):
        KernelTable.model_validate({**table, "kernels": [table["kernels"][i] for i in order]})


def test_a_field_of_a_newer_minor_schema_is_ignored() -> None:
    fields = sample_profile().model_dump()
    fields["device"]["nvlink"] = 18
    profile = Profile.model_validate({**fields, "schema_version": "1.9", "carbon": {"g": 3}})
    assert profile.device == sample_profile().device
    assert not hasattr(profile, "carbon")


@pytest.mark.parametrize(
    "change", [{"to_peer_gb_per_s": None}, {"copy_us": None}, {"unsupported": "why"}, {"both_gb_per_s": 0.0}]
)
def test_a_link_has_all_its_rates_or_the_reason_why_not(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PeerLink.model_validate({**link(1).model_dump(), **change})
    none = {name: None for name in ("to_peer_gb_per_s", "from_peer_gb_per_s", "both_gb_per_s", "copy_us")}
    assert PeerLink.model_validate({**link(1).model_dump(), **none, "unsupported": "why"}).unsupported == "why"


def test_a_link_looks_the_other_way_from_its_other_end() -> None:
    there = link(1, from_peer_gb_per_s=200.0, copy_us=3.0)
    back = there.mirrored(0, "NVIDIA H200")
    assert (back.peer, back.peer_name) == (0, "NVIDIA H200")
    assert (back.to_peer_gb_per_s, back.from_peer_gb_per_s) == (200.0, 370.0)
    assert (back.both_gb_per_s, back.copy_us, back.path) == (there.both_gb_per_s, 3.0, "nvlink")
    assert back.mirrored(1, there.peer_name) == there


def test_the_shipped_json_schema_is_the_generated_one() -> None:
    shipped = importlib.resources.files("apex4_probe.profiles").joinpath("profile.schema.json").read_text("utf-8")
    assert json.loads(shipped) == json_schema(), (
        "run: python -c \"from apex4_probe.profile_file import json_schema_text as t; print(t(), end='')\" "
        "> profiles/profile.schema.json"
    )
    assert json.loads(json_schema_text()) == json_schema()


@pytest.mark.parametrize(
    "profile",
    [sample_profile(), predicted_profile(), sample_profile(links=[link(1), unusable(2)])],
    ids=["measured", "predicted", "with links"],
)
def test_a_written_profile_validates_under_the_json_schema(profile: Profile) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(profile_text(profile)))


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda fields: fields["measurements"][0].pop("value"), ["measurements", 0]),
        (lambda fields: fields["measurements"][0].update(unsupported="both"), ["measurements", 0]),
        (lambda fields: fields["measurements"][0].update(peak_fraction=1.5), ["measurements", 0, "peak_fraction"]),
        (lambda fields: fields["decision"].update(format="w2a2"), ["decision", "format"]),
        (lambda fields: fields["device"].pop("name"), ["device"]),
    ],
)
def test_the_json_schema_refuses_what_the_reader_refuses(change: Any, path: list[str | int]) -> None:
    fields = yaml.safe_load(profile_text(sample_profile()))
    change(fields)
    errors = list(jsonschema.Draft202012Validator(json_schema()).iter_errors(fields))
    # A figure that may be null is one of two branches, so what is wrong may lie a level below.
    assert [list(error.absolute_path)[: len(path)] for error in errors] == [path]
