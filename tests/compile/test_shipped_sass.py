"""bench --sass without a GPU: the shipped counts are what the catalogue compiles to, and what the verb writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apex4_probe import cli
from apex4_probe.architecture import architecture
from apex4_probe.bench_plan import matching
from apex4_probe.kernels import catalogue
from apex4_probe.kernels.compile import compile_kernel, nvrtc_version
from apex4_probe.sass_bounds import sass_records
from apex4_probe.sass_job import chip_of, hot_loop, parse_architectures, tiles_of
from apex4_probe.sass_records import HotLoop, SassReport, shipped_loops

TARGETS = ("sm_80", "sm_86", "sm_87", "sm_89")
RECORD = (
    "variant", "format", "granularity", "strategy", "arch", "warp_tile", "mma", "dequantisation", "other", "registers",
    "shared_bytes", "local_bytes", "pipes", "bounds", "nvrtc",
)  # fmt: skip


def key(loop: HotLoop) -> tuple[str, str, str]:
    return loop.variant, loop.arch, loop.tile


SHIPPED = {key(loop): loop for loop in shipped_loops()}


def test_what_ships_is_every_variants_default_tiles() -> None:
    """Fails where a variant or a default changed: run `make sass`."""
    wanted = {
        (variant.name, facts.target, tile.name)
        for facts in parse_architectures(",".join(TARGETS))
        for variant in catalogue.VARIANTS
        for tile in tiles_of(variant, chip_of(facts), "default")[0]
    }
    assert sorted(set(SHIPPED) ^ wanted) == []


# A tile of every source and strategy; the others are compiled by `make sass`.
SAMPLE = [
    pytest.param(*entry, id=f"{entry[0]}-{entry[1]}-{entry[2]}")
    for entry, loop in SHIPPED.items()
    if loop.arch in ("sm_80", "sm_86") and loop.granularity in ("channel", "a128i", "g128", "g128i", "g128r")
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "arch", "tile"), SAMPLE)
def test_what_ships_is_what_compiles(variant: str, arch: str, tile: str) -> None:
    """Fails where a kernel changed, or this NVRTC compiles it otherwise: run `make sass` and look at the difference."""
    shipped = SHIPPED[variant, arch, tile]
    record = catalogue.by_name(variant)
    point = catalogue.tile_named(record, tile)
    facts = architecture(shipped.compute_capability)
    image = compile_kernel(catalogue.kernel(record, point, arch, bf16=False)).image
    again = hot_loop(facts, chip_of(facts), record, point, image)
    if again.nvrtc != shipped.nvrtc:
        pytest.skip(f"shipped counts are of NVRTC {shipped.nvrtc}, this is {again.nvrtc}")
    assert again == shipped


def test_the_verb_writes_records_csv_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["apex4-probe", "bench", "--sass"])
    arguments = [
        "bench",
        "--sass",
        "--arch",
        "8.0,sm_86",
        "--variants",
        "w4a4.mma.a128i",
        "--out",
        str(tmp_path),
        "--json",
    ]
    result = CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "Nothing is run" in result.stderr
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "sass.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sass.csv", "sass.json", "sass.png"]
    report = SassReport.model_validate(told)
    assert report.header.nvrtc == "{}.{}".format(*nvrtc_version())
    assert {(r.arch, r.variant) for r in report.records} == {("sm_80", "w4a4.mma.a128i"), ("sm_86", "w4a4.mma.a128i")}
    for record in told["records"]:
        assert tuple(record) == RECORD
        assert set(record["pipes"]) == {"tensor", "fma", "alu", "conversion", "shared", "issue"}
        assert set(record["bounds"]) == {"overlap", "mma_and_dequantisation", "all_pipes"}
    first = report.records[0]
    assert (first.warp_tile, first.mma, first.dequantisation, first.local_bytes) == ("64x64", 0.5, 1.0, 0)
    assert first.other <= 0.32
    # Compared with the per-channel kernel although that one was not asked for.
    assert first.bounds.mma_and_dequantisation.over_channel == 1.5
    assert [r.bounds for r in sass_records(report.loops, [SHIPPED[k] for k in SHIPPED if "w4a4.mma.channel" in k])] == [
        record.bounds for record in report.records
    ]
    assert (tmp_path / "sass.csv").read_text().splitlines()[0].startswith("variant,format,granularity,strategy,arch,")


@pytest.mark.slow
def test_on_hopper_int4_is_emulated_and_the_counts_show_it() -> None:
    facts = architecture("9.0")
    (variant,) = matching("w4a4.mma.channel")
    tile = tiles_of(variant, chip_of(facts), "default")[0][0]
    image = compile_kernel(catalogue.kernel(variant, tile, facts.target, bf16=False)).image
    loop = hot_loop(facts, chip_of(facts), variant, tile, image)
    assert loop.mma_rate == "mma.s8" and loop.mma == 1.0  # two IMMA.16832.S8 for one of INT4
    assert 3 < loop.rest < 5  # both operands widened, sums shifted back; the compiler's own emulation takes over 20
