"""Profiles as pandas: every figure where the profile has it."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hostile_profile import empty_profile, hostile_profile
from recorded_host import link, unusable
from sample_profile import predicted_profile, sample_profile

import apex4_probe
from apex4_probe.deployment import CoIssue, GemmTiming, Measurement, PeerLink, Profile
from apex4_probe.errors import ApexError


def same(cell: object, value: object) -> bool:
    if value is None:
        return bool(pd.isna(cell))  # type: ignore[call-overload]  # a scalar
    return bool(cell == value)


@pytest.mark.parametrize("make", [sample_profile, predicted_profile, hostile_profile])
@pytest.mark.parametrize(("section", "model"), [("measurements", Measurement), ("co_issue", CoIssue)])
def test_a_row_a_record_and_a_column_a_field(make: type, section: str, model: type) -> None:
    profile: Profile = make()
    frame = profile.to_frame(section)  # type: ignore[arg-type]
    records = getattr(profile, section)
    assert len(frame) == len(records) > 0
    for name in model.model_fields:  # type: ignore[attr-defined]
        if name != "configuration":
            assert all(same(cell, getattr(record, name)) for cell, record in zip(frame[name], records, strict=True))
    assert frame.attrs == {
        "device": profile.device.name, "origin": profile.origin, "tool_version": profile.tool_version,
    }  # fmt: skip


def test_numbers_are_numbers_even_where_all_are_absent() -> None:
    frame = apex4_probe.predict("A40").to_frame()
    assert str(frame["power_w"].dtype) == "float64" and frame["power_w"].isna().all()
    assert str(frame["spread"].dtype) == "float64"
    assert str(sample_profile().to_frame()["emulated"].dtype) == "boolean"


def test_what_cannot_run_is_nan_beside_its_reason() -> None:
    frame = sample_profile().to_frame()
    refused = frame[frame["unsupported"].notna()]
    assert len(refused) > 0 and refused["value"].isna().all()


def test_balance_has_a_column_a_pipe() -> None:
    profile = sample_profile()
    frame = profile.to_frame("balance")
    for (_, row), item in zip(frame.iterrows(), profile.balance, strict=True):
        assert row["strategy"] == item.strategy
        for pipe, cycles in item.pipes.items():
            assert row[f"pipes.{pipe}"] == cycles


def test_layers_have_a_row_for_every_m() -> None:
    profile = sample_profile()
    frame = profile.to_frame("layers")
    pairs = [(layer, time) for layer in profile.layers for time in layer.times]
    assert list(frame["m"]) == [time.m for _, time in pairs]
    assert list(frame["us"]) == [time.us for _, time in pairs]
    assert list(frame["role"]) == [layer.role for layer, _ in pairs]
    assert list(frame["n"]) == [layer.n for layer, _ in pairs]
    silent = profile.model_copy(update={"layers": [profile.layers[0].model_copy(update={"times": []})]})
    (row,) = silent.to_frame("layers").to_dict("records")
    assert row["role"] == profile.layers[0].role


def test_kernels_have_a_row_for_every_table_and_m() -> None:
    profile = sample_profile()
    frame = profile.to_frame("kernels")
    pairs = [(table, kernel) for table in profile.kernels for kernel in table.kernels]
    assert list(frame["m_max"]) == [kernel.m_max for _, kernel in pairs]
    assert list(frame["variant"]) == [kernel.variant for _, kernel in pairs]
    assert list(frame["n"]) == [table.n for table, _ in pairs]
    assert list(frame["granularity"]) == [table.granularity for table, _ in pairs]


def test_gemm_timings_have_a_column_a_field() -> None:
    profile = sample_profile()
    frame = profile.to_frame("gemm_timings")
    assert len(frame) == len(profile.gemm_timings) == 48
    for name in GemmTiming.model_fields:
        assert all(same(cell, getattr(t, name)) for cell, t in zip(frame[name], profile.gemm_timings, strict=True))
    assert str(frame["gb_per_s"].dtype) == "float64" and frame["gb_per_s"].isna().all()


def test_links_have_a_row_a_peer() -> None:
    frame = sample_profile(links=[link(1), unusable(2)]).to_frame("links")
    assert list(frame["peer"]) == [1, 2]
    assert frame["to_peer_gb_per_s"].dtype == "float64" and list(frame["to_peer_gb_per_s"].isna()) == [False, True]
    assert sample_profile().to_frame("links").columns.tolist() == list(PeerLink.model_fields)


@pytest.mark.parametrize(
    "section", ["measurements", "co_issue", "balance", "layers", "kernels", "gemm_timings", "links"]
)
def test_an_empty_section_has_its_columns(section: str) -> None:
    frame = empty_profile().to_frame(section)  # type: ignore[arg-type]
    assert len(frame) == 0
    assert "origin" in frame.columns
    value = {"measurements": "value", "co_issue": "overlap", "balance": "over_channel", "links": "copy_us"}.get(
        section, "us"
    )
    assert str(frame[value].dtype) == "float64"
    assert math.isnan(frame[value].mean())


def test_another_section_is_one_sentence() -> None:
    with pytest.raises(ApexError, match=r"no section 'nonsense', expected measurements, .*, links, layers or kernels"):
        sample_profile().to_frame("nonsense")  # type: ignore[arg-type]
