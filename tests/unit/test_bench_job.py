"""The verb ``bench`` without a GPU: what it refuses, what it asks to be timed, the files that come out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_machine
import pytest
from sample_bench import sample_bench, sample_record
from sample_profile import sample_measurements

from apex4_probe import bench_job, bench_plan, cli
from apex4_probe.bench_records import load_bench
from apex4_probe.errors import ApexError
from apex4_probe.kernels import catalogue
from apex4_probe.kernels import launch as launch_module
from apex4_probe.kernels.variant import Chip, Shape
from apex4_probe.microbench import execution, gemm_buffers, gemm_candidates, gemm_chain
from apex4_probe.microbench.clocks import Conditions
from apex4_probe.microbench.gemm_records import Roof
from apex4_probe.microbench.gemm_timing import Timing
from apex4_probe.models import load_model
from apex4_probe.selection import best_tiles

HOPPER = Chip("9.0", "sm_90a", 132, 232448)
Call = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """apex4-probe bench in an empty folder, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_job, "discover", fake_machine.discover_nothing)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apex4-probe", "bench", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return run


@pytest.fixture
def gpu(call: Call, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """After ``call``: an H100 whose times are made up. What was asked of it is kept; ``exact`` may be changed."""
    state: dict[str, Any] = {"asked": [], "exact": True, "released": 0, "throttle": frozenset()}

    class Buffers:
        def __init__(self, n: int, k: int, _device: int) -> None:
            self.n, self.k = n, k

        def release(self) -> None:
            state["released"] += 1

    def time_gemms(n: int, k: int, m: int, picks: Any, *, refused: Any, check: bool, methods: Any, **rest: Any) -> Any:
        state["asked"].append((n, k, m, [variant.name for variant, _ in picks], methods, rest["peers"]))
        refused("fp8", "made up to fail")
        found = [sample_record(n, k, m, ("fp16", "fp16", "none", "", None, 1.0))]
        for variant, tile in picks:
            record = sample_record(n, k, m, (variant.name, variant.format, variant.granularity, tile.name, None, 0.25))
            found.append(record.model_copy(update={"exact": state["exact"] if check else None}))
        return found

    class Watched:
        def __init__(self, _index: int) -> None: ...

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None: ...

        def conditions(self, _since: float) -> Conditions:
            return Conditions(throttle=state["throttle"])

    monkeypatch.setattr(bench_job, "discover", fake_machine.discover_one)
    monkeypatch.setattr(bench_job, "why_no_torch", lambda: "")
    monkeypatch.setattr(bench_job, "measured_roof", lambda _gpu: Roof(3060.0, {"s8": 1871.0}))
    monkeypatch.setattr(launch_module, "chip", lambda _device: HOPPER)
    monkeypatch.setattr(gemm_buffers, "GemmBuffers", Buffers)
    monkeypatch.setattr(gemm_candidates, "time_gemms", time_gemms)
    monkeypatch.setattr(execution, "Gpu", Watched)
    times = {gemm_chain.PLAIN: Timing(40.0, 0.01, 15), gemm_chain.PDL: Timing(30.0, 0.02, 15)}
    monkeypatch.setattr(gemm_chain, "time_chain", lambda _links, _m, **_: times)
    return state


def test_without_a_gpu_it_is_one_sentence(call: Call, tmp_path: Path) -> None:
    code, out, err = call()
    assert (code, out) == (2, "")
    assert err == (
        "apex4-probe: bench times kernels on a GPU, and there is none to use: no NVIDIA driver found (NVML: library "
        "not found)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_torch_it_is_one_sentence(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_job, "discover", fake_machine.discover_one)
    monkeypatch.setattr(bench_job, "why_no_torch", lambda: "torch is not installed: pip install 'apex4-probe[torch]'")
    code, _, err = call()
    assert code == 2
    assert (
        err == "apex4-probe: bench compares with torch, and torch is not installed: pip install 'apex4-probe[torch]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--m", "1,x"], "--m: 'x' is no number of tokens from 1 to 1048576"),
        (["--m", "0"], "--m: '0' is no number of tokens"),
        (["--m", ""], "--m: '' is no number of tokens"),
        (["--m", ",".join(str(m) for m in range(1, 66))], "--m has 65 sizes; at most 64"),
        (["--variants", "w4a8.*,w5"], "--variants: 'w5' matches none of w4a8.small.channel, "),
        (["--shapes", "4096x14336,4096"], "--shapes: '4096' is no weight's N x K; expected e.g. 4096x14336"),
        (["--shapes", ""], "--shapes: '' is no weight's N x K"),
        (["--shapes", "4096x0"], "--shapes: '4096x0' is no weight's N x K"),
        (["--shapes", ",".join(f"{n}x128" for n in range(1, 66))], "--shapes has 65 shapes; at most 64"),
        (["--shapes", "64x128", "--model", "llama-3-8b"], "--model does not go with --shapes"),
        (["--model", "nonsense"], "unknown model 'nonsense'"),
        (["--tiles", "few"], "'few' is not one of 'default', 'best', 'all'"),
        (["--method", "fast"], "'fast' is not one of 'interleaved', 'sustained', 'both'"),
    ],
)
def test_bad_input_is_refused_before_a_gpu_is_looked_for(call: Call, arguments: list[str], sentence: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.replace("│", " ").split())


def test_one_gpu_at_a_time(call: Call, gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_job, "discover", fake_machine.discover_two)
    code, _, err = call("--device", "all")
    assert code == 2 and "--device all: bench times one GPU at a time" in err


def test_it_writes_json_csv_and_plot_and_prints_the_table(call: Call, gpu: dict[str, Any], tmp_path: Path) -> None:
    code, out, err = call("--m", "1,1024", "--out", "there")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["bench.csv", "bench.json", "bench.png"]
    bench = load_bench(tmp_path / "there" / "bench.json")
    assert bench.header.command == "apex4-probe bench --m 1,1024 --out there"
    assert (bench.header.read_gb_s, bench.header.tensor_tops) == (3060.0, {"s8": 1871.0})
    assert {(record.n, record.k, record.m) for record in bench.records} == {
        (n, k, m) for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)) for m in (1, 1024)
    }
    assert "6144 × 4096, M = 1" in out and "Written to there: bench.json, bench.png, bench.csv." in out
    assert gpu["released"] == 4


def test_what_is_illegal_or_fails_stands_in_the_file(call: Call, gpu: dict[str, Any], tmp_path: Path) -> None:
    assert call("--m", "1024", "--variants", "w4a8.*", "--out", "there")[0] == 0
    refused = load_bench(tmp_path / "there" / "bench.json").refused
    assert {item.candidate for item in refused} >= {"fp8", "w4a8.small.channel", "w4a8.small.g128i"}
    assert all(item.why for item in refused)
    assert all(
        names == [n for n in names if n.startswith(("w4a8.wgmma", "w4a8.mma"))] for _, _, _, names, _, _ in gpu["asked"]
    )


def test_json_is_all_that_stdout_holds(call: Call, gpu: dict[str, Any], tmp_path: Path) -> None:
    code, out, _ = call("--m", "1", "--json", "--out", "there")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "there" / "bench.json").read_text())


def test_a_wrong_output_is_exit_code_1(call: Call, gpu: dict[str, Any]) -> None:
    assert call("--m", "1", "--check")[0] == 0
    gpu["exact"] = False
    assert call("--m", "1", "--check")[0] == 1
    assert call("--m", "1")[0] == 0  # not checked


def test_method_and_peers_are_passed_on(call: Call, gpu: dict[str, Any]) -> None:
    call("--m", "16", "--method", "both", "--peers", "--variants", "w4a8.small.channel")
    *_, methods, peers = gpu["asked"][0]
    assert methods == ("interleaved", "sustained")
    assert {name.partition(".")[0] for name, _ in peers} == {"humming", "marlin", "tinygemm"}


def test_of_peers_those_that_are_named_or_all(call: Call, gpu: dict[str, Any]) -> None:
    call("--m", "16", "--peers", "--variants", "w4a8.small.channel,humming.w4a8.*")
    *_, peers = gpu["asked"][0]
    assert [name for name, _ in peers] == ["humming.w4a8.channel", "humming.w4a8.g128"]
    code, _, err = call("--m", "16", "--variants", "humming.w4a8.*")  # without --peers there are none
    assert code == 2 and "'humming.w4a8.*' matches none of" in err


def test_what_is_timed_by_two_methods_has_its_tile_from_the_first(
    call: Call, gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, int]] = []
    variant = catalogue.by_name("w4a8.small.channel")

    def time_gemms(n: int, k: int, m: int, picks: Any, *_: Any, methods: Any = ("heat",), **__: Any) -> Any:
        (method,) = methods
        asked.append((method, len(picks)))
        found = []
        for place, (one, tile) in enumerate(picks):
            share = 0.3 - 0.001 * place if method == "interleaved" else 0.3
            record = sample_record(n, k, m, (one.name, "w4a8", "channel", tile.name, None, share))
            found.append(record.model_copy(update={"method": "sustained" if method == "sustained" else "interleaved"}))
        return found

    monkeypatch.setattr(gemm_candidates, "time_gemms", time_gemms)
    arguments = ("--shapes", "4096x4096", "--m", "1", "--variants", variant.name, "--tiles", "best")
    assert call(*arguments, "--method", "both", "--out", "there")[0] == 0
    assert [method for method, _ in asked] == ["heat", "interleaved", "sustained"]
    assert [count for _, count in asked][1:] == [bench_plan.FINALISTS, 1]
    records = load_bench(tmp_path / "there" / "bench.json").records
    assert [record.method for record in records] == ["interleaved", "sustained"]
    assert records[0].tile == records[1].tile


def test_a_hot_gpu_is_a_warning_in_the_file(call: Call, gpu: dict[str, Any], tmp_path: Path) -> None:
    gpu["throttle"] = frozenset({"power_cap", "hardware_thermal"})
    call("--m", "1", "--out", "there")
    assert load_bench(tmp_path / "there" / "bench.json").header.warnings == [
        "heat or a power brake slowed the GPU (hardware_thermal): ratios hold, times may be long"
    ]


def test_chains_are_timed_where_launching_counts(call: Call, gpu: dict[str, Any], tmp_path: Path) -> None:
    call("--m", "1,64,128", "--variants", "w4a8.*", "--out", "there")
    chains = load_bench(tmp_path / "there" / "bench.json").chains
    assert [(chain.m, chain.us, chain.us_pdl, chain.us_fp16) for chain in chains] == [
        (1, 40.0, 30.0, None), (64, 40.0, 30.0, None),
    ]  # fmt: skip
    assert [link.split(" w4a8")[0] for link in chains[0].links] == [
        "6144 x 4096", "4096 x 4096", "28672 x 4096", "4096 x 14336",
    ]  # fmt: skip


def test_linears_that_share_an_input_are_one_gemm() -> None:
    assert [(gemm.n, gemm.k) for gemm in bench_plan.gemms(load_model("llama-3-8b"))] == [
        (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336),
    ]  # fmt: skip


def test_tokens_are_ascending_and_told_once() -> None:
    assert bench_plan.parse_tokens("16, 1,16") == (1, 16)


def test_shapes_that_are_given_take_the_place_of_a_model_s() -> None:
    plan = bench_plan.read(bench_plan.BenchRequest(shapes="4096x14336, 57344X8192,4096x14336"))
    assert [(gemm.n, gemm.k) for gemm in plan.gemms] == [(4096, 14336), (57344, 8192)]
    assert (plan.title, plan.block) == ("given shapes", False)


def test_patterns_choose_variants_in_the_catalogue_s_order() -> None:
    names = [variant.name for variant in bench_plan.matching("*.g128i,w4a8.small.*")]
    assert names == [
        "w4a8.small.channel", "w4a8.small.g128i", "w4a8.small.g128r", "w4a8.wgmma.g128i", "w4a8.mma.g128i",
    ]  # fmt: skip
    assert bench_plan.matching("*") == catalogue.VARIANTS


def test_best_times_no_tile_that_holds_more_tokens_than_it_must_and_keeps_the_fastest() -> None:
    plan = bench_plan.read(bench_plan.BenchRequest(variants="w4a8.small.channel,w4a16.fp16.g128", tiles="best"))
    for m, most in ((1, 8), (8, 8), (9, 16), (64, 64)):
        picks, _ = plan.picks(4096, 4096, m, HOPPER)
        small = [tile for variant, tile in picks if variant.name == "w4a8.small.channel"]
        assert {tile["tokens"] for tile in small} == {most}
        assert len(picks) == len(small) + 1  # the other variant's tile knows no tokens
    tiled, _ = replace(plan, variants=bench_plan.matching("w4a8.mma.channel")).picks(4096, 4096, 4096, HOPPER)
    assert len(tiled) == len(catalogue.by_name("w4a8.mma.channel").tiles)
    records = sample_bench().records
    kept = best_tiles(records)
    assert {r.tile for r in records if r.variant == "w4a8.small.channel"} == {"rows=32,warps=16", "rows=64,warps=8"}
    assert {r.tile for r in kept if r.variant == "w4a8.small.channel"} == {"rows=32,warps=16"}
    assert {r.variant for r in kept} == {r.variant for r in records}


def test_an_emulated_mma_is_timed_only_where_it_was_named() -> None:
    everything = bench_plan.read(bench_plan.BenchRequest(tokens="128"))
    picks, refused = everything.picks(4096, 4096, 128, HOPPER)
    assert {variant.format for variant, _ in picks} == {"w4a8", "w4a16"}
    assert "emulated on compute capability 9.0" in refused["w4a4.mma.channel"]
    assert "name it by --variants" in refused["w4a4.mma.channel"]
    picks, _ = everything.picks(4096, 4096, 128, Chip("8.0", "sm_80", 108, 163 * 1024))
    assert "w4a4.mma.channel" in {variant.name for variant, _ in picks}
    named = bench_plan.read(bench_plan.BenchRequest(variants="w4a4.mma.*", tokens="128"))
    picks, refused = named.picks(4096, 4096, 128, HOPPER)
    assert {variant.name for variant, _ in picks} >= {"w4a4.mma.channel", "w4a4.mma.g32"} and refused == {}


def test_a_first_heat_leaves_a_variant_the_tiles_near_its_fastest() -> None:
    variant = catalogue.by_name("w4a8.small.channel")
    picks = [(variant, tile) for tile in variant.tiles[:6]]
    shares = (0.300, 0.290, 0.304, 0.310, 0.295, 0.280)  # 0.294 is 5 % above the last

    def record(tile: str, share: float) -> Any:
        return sample_record(4096, 4096, 1, (variant.name, "w4a8", "channel", tile, None, share))

    heat = [record(tile.name, share) for (_, tile), share in zip(picks, shares, strict=True)]
    assert bench_plan.finalists(picks, heat) == [picks[1], picks[5]]
    near = [record(tile.name, 0.3) for _, tile in picks]
    assert bench_plan.finalists(picks, near) == picks[: bench_plan.FINALISTS]
    assert bench_plan.finalists(picks, heat[:1]) == picks[:1]  # what could not run in the heat does not run again


def test_all_tiles_are_those_that_the_chip_can_run() -> None:
    plan = bench_plan.read(bench_plan.BenchRequest(variants="w4a8.mma.channel", tiles="all", tokens="64"))
    picks, refused = plan.picks(4096, 4096, 64, HOPPER)
    (variant,) = plan.variants
    expected = [tile for tile in variant.tiles if not variant.refuses(tile, Shape(64, 4096, 4096), HOPPER)]
    assert [tile for _, tile in picks] == expected and len(expected) > 1 and refused == {}
    one, _ = replace(plan, tiles="default").picks(4096, 4096, 64, HOPPER)
    assert one == [(variant, catalogue.safe_tile(variant, Shape(64, 4096, 4096), HOPPER))]


def test_the_roof_is_what_was_measured_in_hardware() -> None:
    roof = bench_job.roof_of(fake_machine.H100, sample_measurements())
    recorded = {m.name: m.value for m in sample_measurements() if m.operands != "zeros" and m.regime != "sustained"}
    assert roof.read_gb_s == recorded["memory.read"]
    assert roof.tops["f16"] == pytest.approx(recorded["wgmma.f16.m64n256k16.ss"], rel=0.01)
    assert roof.tops["s8"] == pytest.approx(recorded["wgmma.s8.m64n256k32.rs"], rel=0.01)
    assert "s4" not in roof.tops  # emulated on Hopper


def test_the_chain_takes_the_fastest_w4a8_kernel_of_each_gemm() -> None:
    plan = bench_plan.read(bench_plan.BenchRequest(tokens="1"))
    tile = catalogue.by_name("w4a8.small.channel").tiles[0].name

    def record(n: int, k: int, variant: str, share: float) -> Any:
        return sample_record(n, k, 1, (variant, "w4a8", "channel", tile, None, share))

    records = [record(gemm.n, gemm.k, "w4a8.small.channel", 0.3) for gemm in plan.gemms]
    faster_peer = [record(gemm.n, gemm.k, "humming.w4a8.channel", 0.1) for gemm in plan.gemms]
    links = bench_job.chain_links(plan, [*records, *faster_peer], 1)
    assert [(link.n, link.k, link.variant.name, link.tile.name) for link in links] == [
        (gemm.n, gemm.k, "w4a8.small.channel", tile) for gemm in plan.gemms
    ]
    assert bench_job.chain_links(plan, records[1:], 1) == []  # a block with a hole is no chain
    assert bench_job.chain_links(plan, records, 16) == []


def test_parts_of_a_chain_go_round_their_own_copies() -> None:
    used: list[str] = []
    parts = [[lambda: used.append("a0"), lambda: used.append("a1"), lambda: used.append("a2")],
             [lambda: used.append("b0"), lambda: used.append("b1")]]  # fmt: skip
    for turn in gemm_chain.turns(parts):
        turn()
    assert used == ["a0", "b0", "a1", "b1", "a2", "b0"]


def test_an_unwritable_folder_is_found_before_timing(call: Call, gpu: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call("--out", "file/there")
    assert code == 2 and "--out file/there" in err and gpu["asked"] == []


def test_a_failing_gpu_leaves_no_file(call: Call, gpu: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    def lost(*_arguments: object, **_options: object) -> Any:
        raise ApexError("w4a8.mma.channel: the GPU can no longer be used by this process: illegal address")

    monkeypatch.setattr(gemm_candidates, "time_gemms", lost)
    code, _, err = call("--m", "1", "--out", "there")
    assert code == 2 and "w4a8.mma.channel: the GPU can no longer be used" in err
    assert not (tmp_path / "there").exists()


def test_given_shapes_are_no_chain(call: Call, gpu: dict[str, Any], tmp_path: Path) -> None:
    _, out, _ = call("--m", "64", "--shapes", "6144x4096,57344x8192", "--variants", "w4a8.*", "--out", "there")
    bench = load_bench(tmp_path / "there" / "bench.json")
    assert {(record.n, record.k) for record in bench.records} == {(6144, 4096), (57344, 8192)} and not bench.chains
    assert "the GEMMs of given shapes, timed" in out and "× FP16 over all shapes" in out
