"""Candidates of the catalogue and of peers on torch's CPU, with the reference in place of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from apex4_probe.errors import ApexError
from apex4_probe.kernels import catalogue
from apex4_probe.kernels import gemm as gemm_module
from apex4_probe.kernels import quantise as quantise_module
from apex4_probe.kernels.quantise import activation_kind
from apex4_probe.kernels.reference import reference_linear
from apex4_probe.kernels.variant import Chip, Geometry, Variant, tile
from apex4_probe.microbench import gemm_candidates, torch_quantise
from apex4_probe.microbench.gemm_buffers import GemmBuffers
from apex4_probe.microbench.gemm_candidates import measured, prepare
from apex4_probe.microbench.gemm_check import agrees, expected, within_one_rounding
from apex4_probe.microbench.gemm_timing import Call, GpuLostError, Replay

torch = pytest.importorskip("torch")
N, K, M = 64, 128, 5
TILE, WIDE = tile(rows=32), tile(rows=64)


def variant(format: Any, granularity: Any, refuse: str = "") -> Variant:
    return Variant(
        name=f"{format}.test.{granularity}", format=format, granularity=granularity, strategy="none", description="",
        source="", headers=(), macros=(), tiles=(TILE, WIDE), default=lambda _shape, _chip: TILE,
        refuses=lambda one, _shape, _chip: refuse if one == WIDE else "",
        geometry=lambda _tile, _shape, _chip: Geometry((1, 1, 1), 32, 0),
    )  # fmt: skip


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> GemmBuffers:
    """The kernels are the reference; quantised activations are the tensor itself."""
    chip = Chip("9.0", "sm_90a", 132, 232448)
    monkeypatch.setattr(gemm_candidates, "chip", lambda _device: chip)
    monkeypatch.setattr(gemm_module, "precompile", lambda _picks, _device: None)
    monkeypatch.setattr(quantise_module, "quantise", lambda x, kind: x)

    def gemm(x: Any, packed: Any, _variant: Variant, _tile: object, out: Any = None, dtype: Any = None) -> Any:
        y = reference_linear(x, packed)
        assert y.dtype == dtype
        return y if out is None else out.copy_(y)

    monkeypatch.setattr(gemm_module, "gemm", gemm)
    return GemmBuffers(N, K, torch.device("cpu"), rotate_bytes=3 * (N * K / 2 + 4 * N))


def record(calls: Sequence[Call], count: int) -> Replay:
    """Every call takes 10 us."""
    for call in calls:
        call()
    return lambda: 0.01 * count


def test_a_pick_multiplies_each_weight_by_the_activations_in_turn(cpu: GemmBuffers) -> None:
    (way,), (quantiser,) = prepare(cpu, M, [(variant("w4a8", "channel"), TILE)], [], [], pytest.fail)
    xs = [x for _, x in zip(range(3), quantiser.calls, strict=False)]
    weights = cpu.packed("w4a8", "channel")
    assert len(weights) == len(way.calls) == 3
    for call, x, packed in zip(way.calls, xs, weights, strict=True):
        assert torch.equal(call(), reference_linear(x(), packed))  # type: ignore[arg-type]
    assert (way.key, way.quantise, way.operand) == ("w4a8.test.channel rows=32", "quantise int8", "s8")
    # nibbles and row scales, INT8 with a scale and a sum a token, FP16 out
    assert way.moved_bytes == N * K / 2 + 4 * N + M * (K + 8) + 2 * M * N


def test_w4a16_takes_the_activations_as_they_are(cpu: GemmBuffers) -> None:
    (way,), quantisers = prepare(cpu, M, [(variant("w4a16", "g128"), TILE)], [], [], pytest.fail)
    assert quantisers == [] and way.quantise == ""
    assert way.moved_bytes == N * K / 2 + 2 * N * K / 128 + 4 * N + 2 * M * K + 2 * M * N


def test_what_cannot_run_is_told_and_the_rest_is_made(cpu: GemmBuffers) -> None:
    def absent(_buffers: GemmBuffers, _xs: object) -> Any:
        raise ModuleNotFoundError("No module named 'x'")

    told: dict[str, str] = {}
    picky = variant("w4a8", "channel", refuse="64 rows need more shared memory")
    picks = [(picky, WIDE), (picky, TILE)]
    ways, _ = prepare(cpu, M, picks, ["fp4"], [("peer", absent)], told.__setitem__)
    assert [way.key for way in ways] == ["w4a8.test.channel rows=32"]
    assert told == {
        "w4a8.test.channel rows=64": "64 rows need more shared memory",
        "fp4": "no baseline 'fp4': expected fp16, fp8, int8, read",
        "peer": "No module named 'x'",
    }


def test_both_methods_give_records_and_the_check_is_made_once(cpu: GemmBuffers) -> None:
    picks = [(variant("w4a8", "channel"), TILE), (variant("w4a16", "g128"), TILE)]
    prepared = prepare(cpu, M, picks, ["fp16"], [], pytest.fail)
    found = measured((N, K, M), prepared, ("interleaved", "sustained"), 3, 0.02, check=True, record=record)
    assert [(r.variant, r.method, r.us, r.us_quantise, r.exact) for r in found] == [
        ("fp16", "interleaved", pytest.approx(10.0), 0.0, None),
        ("w4a8.test.channel", "interleaved", pytest.approx(10.0), pytest.approx(10.0), True),
        ("w4a16.test.g128", "interleaved", pytest.approx(10.0), 0.0, True),
        ("fp16", "sustained", pytest.approx(10.0), 0.0, None),
        ("w4a8.test.channel", "sustained", pytest.approx(10.0), pytest.approx(10.0), True),
        ("w4a16.test.g128", "sustained", pytest.approx(10.0), 0.0, True),
    ]
    assert found[1].speedup_fp16 == pytest.approx(1.0)


def test_a_wrong_kernel_is_found(cpu: GemmBuffers, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gemm_module.gemm

    def off_by_one_bit(*arguments: Any, **options: Any) -> Any:
        y = right(*arguments, **options)
        y.view(torch.int16)[1, 3] ^= 1
        return y

    monkeypatch.setattr(gemm_module, "gemm", off_by_one_bit)
    prepared = prepare(cpu, M, [(variant("w4a8", "g128i"), TILE)], [], [], pytest.fail)
    (ours,) = measured((N, K, M), prepared, ("interleaved",), 3, 0.02, check=True, record=record)
    assert ours.exact is False


def test_sustained_leaves_out_what_fails_and_stops_when_the_gpu_is_lost(cpu: GemmBuffers) -> None:
    prepared = prepare(cpu, M, [(variant("w4a16", "g128"), TILE)], ["fp16"], [], pytest.fail)

    def failing(error: Exception) -> Any:
        def one(calls: Sequence[Call], count: int) -> Replay:
            if len(calls) == len(cpu.packed("w4a16", "g128")):
                raise error
            return record(calls, count)

        return one

    told: dict[str, str] = {}
    found = measured(
        (N, K, M), prepared, ("sustained",), record=failing(ApexError("no cubin")), refused=told.__setitem__
    )
    assert [r.variant for r in found] == ["fp16"] and told == {"w4a16.test.g128 rows=32": "no cubin"}
    with pytest.raises(GpuLostError):
        measured((N, K, M), prepared, ("sustained",), record=failing(GpuLostError("illegal address")))


@pytest.mark.parametrize(
    ("format", "granularity", "kind"),
    [
        ("w4a8", "channel", "int8"), ("w4a8", "g128i", "int8"), ("w4a16", "g128", None),
        ("w4a4", "channel", "int4"), ("w4a4", "a128i", "int4_a128i"), ("w4a4", "g32", "int4_g32"),
    ],
)  # fmt: skip
def test_activations_are_quantised_as_the_packing_wants(format: Any, granularity: Any, kind: str | None) -> None:
    variants = [each for each in catalogue.VARIANTS if (each.format, each.granularity) == (format, granularity)]
    kinds = {each.name: activation_kind(each) for each in variants if not each.activations}
    assert set(kinds.values()) == {kind}, kinds


def test_kernels_on_wgmma_want_another_order() -> None:
    kinds = {each.name: activation_kind(each) for each in catalogue.VARIANTS if "wgmma" in each.name}
    assert set(kinds.values()) == {"int8_wgmma"} and len(kinds) >= 2


def test_one_rounding_and_no_more() -> None:
    exact = torch.tensor([[1000.0, 1.0, -1000.0]], dtype=torch.float64)  # units of fp16: 0.5 near 1000
    good = torch.tensor([[1000.5, 1.0, -999.5]], dtype=torch.float16)
    assert within_one_rounding(good, exact)
    assert not within_one_rounding(torch.tensor([[1001.5, 1.0, -1000.0]], dtype=torch.float16), exact)
    assert not within_one_rounding(torch.tensor([[1000.0, 3.0, -1000.0]], dtype=torch.float16), exact)
    assert not within_one_rounding(torch.tensor([[float("nan"), 1.0, -1000.0]], dtype=torch.float16), exact)
    # A difference of sums of the size of 1000 may be off by their rounding in fp32, not by more.
    assert within_one_rounding(torch.tensor([[1000.0, 1.01, -1000.0]], dtype=torch.float16), exact)


def test_float_sums_are_held_to_float64(cpu: GemmBuffers) -> None:
    (x, *_), packed = cpu.activations(M), cpu.packed("w4a16", "g128")[0]
    y = reference_linear(x, packed)
    assert agrees(y, expected(x, packed), "w4a16")
    assert not agrees(y * 1.01, expected(x, packed), "w4a16")


def test_int8_rows_are_those_of_the_reference() -> None:
    from apex4_probe.kernels.reference import quantise_int8

    x = torch.randn(7, 256, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    q, scale = torch_quantise.int8_rows(x)
    reference, reference_scale, _ = quantise_int8(x)
    assert (q.int() - reference.int()).abs().max() <= 1  # x / scale here, x * (127 / absmax) there
    assert torch.allclose(scale[:, 0], reference_scale, rtol=1e-6)


def test_too_many_tokens_for_the_memory_are_told(cpu: GemmBuffers, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(_m: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 TiB.\nadvice")

    monkeypatch.setattr(cpu, "activations", too_many)
    told: dict[str, str] = {}
    assert prepare(cpu, 1 << 30, [], ["fp16"], [], told.__setitem__) == ([], [])
    assert told == {"every candidate": "CUDA out of memory. Tried to allocate 4 TiB."}
