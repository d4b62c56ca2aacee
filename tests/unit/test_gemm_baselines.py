"""What the baselines multiply, on torch's CPU, where the same operators exist; and the pure read's launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from apex4_probe.errors import ApexError
from apex4_probe.kernels.variant import Chip, Geometry
from apex4_probe.microbench import gemm_baselines, torch_quantise
from apex4_probe.microbench.gemm_baselines import baseline, pairs
from apex4_probe.microbench.gemm_buffers import GemmBuffers, copies

torch = pytest.importorskip("torch")
N, K = 64, 128
HOPPER = Chip("9.0", "sm_90a", 132, 232448)


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> GemmBuffers:
    monkeypatch.setattr(gemm_baselines, "chip", lambda _device: HOPPER)
    monkeypatch.setattr(gemm_baselines, "fused", lambda function, _x: (function, torch_quantise.EAGER))
    return GemmBuffers(N, K, torch.device("cpu"), rotate_bytes=3 * 2 * N * K)


def dense(x: Any, weight: Any) -> Any:
    return x.double() @ weight.double().T


def test_weights_make_up_the_bytes_to_rotate_over() -> None:
    assert copies(8e6) == 38  # 4096 x 4096 nibbles, 300 MB
    assert copies(1e9) == 2  # one alone would be read twice in a row
    assert copies(400_000, rotate_bytes=1e6) == 3


def test_buffers_are_made_once_and_again_after_release(buffers: GemmBuffers) -> None:
    first = buffers.fp16
    assert len(first) == 3 and buffers.fp16 is first
    assert not torch.equal(first[0], first[1])
    assert first[0].std().item() == pytest.approx(0.02, rel=0.1)
    buffers.release()
    assert buffers.fp16 is not first


def test_fp16_multiplies_every_weight_with_the_activations_in_turn(buffers: GemmBuffers) -> None:
    xs = buffers.activations(5)[:2]
    (way,), quantisers = baseline("fp16", buffers, xs)
    for call, x, weight in zip(way.calls, (xs[0], xs[1], xs[0]), buffers.fp16, strict=True):
        assert torch.allclose(call().double(), dense(x, weight), atol=2e-3)
    assert quantisers == []
    assert way.moved_bytes == 2 * (N * K + 5 * K + 5 * N)


def test_fp8_is_close_to_the_weights_it_quantised(buffers: GemmBuffers) -> None:
    xs = buffers.activations(16)
    (way,), (quantiser,) = baseline("fp8", buffers, xs)
    weight, scale = buffers.fp8[1]
    expected = dense(xs[1], weight.float() * scale)
    error = (way.calls[1]().double() - expected).norm() / expected.norm()
    assert error < 0.04  # e4m3 activations: three bits of mantissa, 2^-4 / sqrt(3) of each product at most
    assert (way.quantise, quantiser.key, way.strategy) == (
        "quantise fp8",
        "quantise fp8",
        "quantised by torch operators",
    )
    assert len(way.calls) == 6  # a byte a weight: twice as many copies as FP16 has
    assert way.moved_bytes == N * K + 4 * N + 16 * K + 4 * 16 + 2 * 16 * N


def test_fp8_says_why_it_cannot(buffers: GemmBuffers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_baselines, "chip", lambda _device: Chip("8.6", "sm_86", 82, 101376))
    with pytest.raises(ApexError, match=r"8\.6 has no FP8"):
        baseline("fp8", buffers, buffers.activations(1))


@pytest.mark.parametrize(("m", "rows", "tile"), [(1, 32, "padded_to=32"), (16, 32, "padded_to=32"), (17, 17, "")])
def test_int8_is_exact_and_pads_what_torch_refuses(buffers: GemmBuffers, m: int, rows: int, tile: str) -> None:
    xs = buffers.activations(m)
    (way,), _ = baseline("int8", buffers, xs)
    out = way.calls[2]()
    q, _ = torch_quantise.int8_rows(xs[2])
    assert out.shape == (rows, N) and way.tile == tile
    assert torch.equal(out[:m].double(), dense(q, buffers.bytes_nk[2]))
    assert not out[m:].any()


def test_an_unknown_baseline_names_those_there_are(buffers: GemmBuffers) -> None:
    with pytest.raises(ApexError, match="'fp4': expected fp16, fp8, int8, read"):
        baseline("fp4", buffers, buffers.activations(1))


def test_the_pure_read_touches_every_byte_of_the_nibbles_in_two_ways(
    buffers: GemmBuffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[tuple[str, Geometry, Sequence[int]]] = []

    class Loaded:
        def __init__(self, entry: str) -> None:
            self.entry = entry

        def launch(self, geometry: Geometry, arguments: Sequence[int], _stream: int) -> None:
            launches.append((self.entry, geometry, arguments))

    class Stream:
        cuda_stream = 0

    monkeypatch.setattr(gemm_baselines, "load_kernel", lambda _kernel, entry, _signature, _device: Loaded(entry))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream)
    ways, _ = baseline("read", buffers, [])
    assert [way.key for way in ways] == ["read slices", "read strided"]
    assert {way.moved_bytes for way in ways} == {N * K / 2}
    for way in ways:
        way.calls[1]()
    weight = buffers.packed("w4a8", "channel")[1].data
    assert [(entry, geometry.grid, geometry.threads) for entry, geometry, _ in launches] == [
        ("slices", (264, 1, 1), 512), ("strided", (132, 1, 1), 1024),
    ]  # fmt: skip
    assert all(arguments[0] == weight.data_ptr() and arguments[2] == N * K / 2 / 16 for _, _, arguments in launches)


def test_pairs_use_every_weight_once_and_the_activations_in_turn() -> None:
    assert pairs("xy", [1, 2, 3]) == [("x", 1), ("y", 2), ("x", 3)]


def test_rows_are_quantised_by_their_own_magnitude() -> None:
    x = torch.tensor([[1.0, -4.0, 2.0], [0.5, 0.25, -0.125], [0.0, 0.0, 0.0]], dtype=torch.float16)
    q, scale = torch_quantise.int8_rows(x)
    assert q.tolist() == [[32, -127, 64], [127, 64, -32], [0, 0, 0]]  # 31.75, 63.5 and -31.75; halves to even
    assert scale[:2, 0].tolist() == pytest.approx([4 / 127, 0.5 / 127])
    f, scale = torch_quantise.fp8_rows(x)
    assert f.float().tolist() == [[112, -448, 224], [448, 224, -112], [0, 0, 0]]
    assert scale[:2, 0].tolist() == pytest.approx([4 / 448, 0.5 / 448])


def test_where_torch_compile_fails_the_operators_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(_function: object) -> object:
        def fail(_x: object) -> object:
            raise RuntimeError("no C compiler")

        return fail

    monkeypatch.setattr(torch_quantise, "_compiled", no_compiler)
    x = torch.ones(1, 4, dtype=torch.float16)
    assert torch_quantise.fused(torch_quantise.fp8_rows, x) == (torch_quantise.fp8_rows, "torch operators")
    monkeypatch.setattr(torch_quantise, "_compiled", lambda function: function)
    assert torch_quantise.fused(torch_quantise.fp8_rows, x)[1] == "torch.compile"
