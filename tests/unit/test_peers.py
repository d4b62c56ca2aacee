"""Peers' adapters against stand-ins of their libraries: what they are given, and what stands beside their figures."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from apex4_probe import peers
from apex4_probe.errors import ApexError
from apex4_probe.microbench.gemm_buffers import GemmBuffers

torch = pytest.importorskip("torch")
N, K, M = 128, 256, 4


@pytest.fixture
def buffers() -> GemmBuffers:
    return GemmBuffers(N, K, torch.device("cpu"), rotate_bytes=3 * N * K / 2)


def peer(variant: str) -> peers.Peer:
    return next(one for one in peers.peers() if one.variant == variant)


def module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        if path not in sys.modules:
            made = ModuleType(path)
            made.__path__ = []  # type: ignore[attr-defined]  # a package
            made.__spec__ = SimpleNamespace(name=path)  # type: ignore[assignment]
            monkeypatch.setitem(sys.modules, path, made)
            if depth > 1:
                setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], made)
    for key, value in members.items():
        setattr(sys.modules[name], key, value)


class FakeLayer:
    """HummingLayer as far as the adapter uses it: W = what was loaded, no quantisation."""

    made: list[dict[str, Any]] = []  # noqa: RUF012  # cleared by the fixture

    def __init__(self, **options: Any) -> None:
        FakeLayer.made.append(options)
        self.humming_config = "config"
        self.transformed = False

    def to(self, _device: object) -> FakeLayer:
        return self

    def load_from_unquantized(self, weight: Any) -> None:
        self.weight = weight

    def transform(self) -> None:
        self.transformed = True

    def __call__(self, x: Any, input_scale: Any) -> Any:
        assert self.transformed
        y = x.float() @ self.weight.float().T
        return y if input_scale is None else y * input_scale


@pytest.fixture
def humming(monkeypatch: pytest.MonkeyPatch) -> None:
    def may_quant_input(config: str, x: Any) -> Any:
        assert config == "config"
        bits16 = FakeLayer.made[-1]["input_config"] is None
        return (x, None) if bits16 else ((x * 10).round().to(torch.int8), torch.full((len(x), 1), 0.1))

    FakeLayer.made.clear()
    module(monkeypatch, "humming.layer", HummingLayer=FakeLayer)
    module(monkeypatch, "humming.forward", may_quant_input=may_quant_input)
    monkeypatch.setattr(peers, "installed_version", {"humming-kernels": "0.1.19"}.get)


def test_a_peer_that_is_not_installed_says_how_to_get_it(buffers: GemmBuffers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _module: None)
    for variant, package in (("humming.w4a8.g128", "humming-kernels"), ("marlin.w4a16.channel", "vllm")):
        with pytest.raises(ApexError, match=rf"^not installed: pip install {package}$"):
            peer(variant).prepare(buffers, buffers.activations(M))


@pytest.mark.usefixtures("humming")
def test_humming_multiplies_what_it_quantised_beforehand(buffers: GemmBuffers) -> None:
    xs = buffers.activations(M)
    (way,), (quantiser,) = peer("humming.w4a8.g128").prepare(buffers, xs)
    assert len(way.calls) == 3 and len(FakeLayer.made) == 3
    assert FakeLayer.made[0] == {
        "shape_n": N, "shape_k": K, "weight_config": {"dtype": "int4", "group_size": 128},
        "input_config": {"dtype": "int8"}, "torch_dtype": torch.float16,
    }  # fmt: skip
    expected = (xs[1] * 10).round().float() @ buffers.fp16[0].float().T * 0.1
    assert torch.allclose(way.calls[1](), expected)
    assert quantiser.calls[1]()[0].dtype == torch.int8
    assert (way.variant, way.version, way.quantise, way.operand) == (
        "humming.w4a8.g128", "0.1.19", quantiser.key, "s8",
    )  # fmt: skip
    # nibbles, an FP16 scale a group, INT8 activations with a scale a token, FP16 out
    assert way.moved_bytes == N * K / 2 + 2 * N * K / 128 + M * K + 4 * M + 2 * M * N


@pytest.mark.usefixtures("humming")
def test_humming_without_activation_quantisation(buffers: GemmBuffers) -> None:
    xs = buffers.activations(M)
    (way,), quantisers = peer("humming.w4a16.g128").prepare(buffers, xs)
    assert quantisers == [] and way.quantise == "" and way.operand == "f16"
    assert torch.allclose(way.calls[0](), xs[0].float() @ buffers.fp16[0].float().T)
    assert FakeLayer.made[0]["input_config"] is None


def test_marlin_gets_its_own_layout_and_group_size(buffers: GemmBuffers, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    path = "vllm.model_executor.layers.quantization.utils.marlin_utils"

    def supports(n: int, k: int, whole_k: int, group: int) -> tuple[bool, str | None]:
        assert (n, k, whole_k) == (N, K, K)
        return (True, None) if group == 128 else (False, "no\n channel   scales")

    module(
        monkeypatch, path,
        check_marlin_supports_shape=supports,
        marlin_make_empty_g_idx=lambda _device: "empty",
        marlin_make_workspace_new=lambda _device: "workspace",
        apply_gptq_marlin_linear=lambda **options: seen.append(options),
    )  # fmt: skip
    module(monkeypatch, "vllm.scalar_type", scalar_types=SimpleNamespace(uint4b8="uint4b8"))
    xs = buffers.activations(M)
    (way,), quantisers = peer("marlin.w4a16.g128").prepare(buffers, xs)
    way.calls[2]()
    assert quantisers == [] and len(way.calls) == 3 and seen[0]["input"] is xs[2]
    assert seen[0]["weight"].shape == (K // 16, 2 * N) and seen[0]["weight"].nbytes == N * K / 2
    assert seen[0]["weight_scale"].shape == (K // 128, N)
    assert (seen[0]["output_size_per_partition"], seen[0]["input_size_per_partition"]) == (N, K)
    assert seen[0]["wtype"] == "uint4b8" and seen[0]["workspace"] == "workspace"
    with pytest.raises(ApexError, match=r"^no channel scales$"):
        peer("marlin.w4a16.channel").prepare(buffers, xs)


def test_tinygemm_refuses_what_it_cannot_pack() -> None:
    odd = GemmBuffers(100, K, torch.device("cpu"))
    with pytest.raises(ApexError, match="N in multiples of 8"):
        peer("tinygemm.w4a16.g128").prepare(odd, odd.activations(1))


def test_versions_stand_for_the_packages_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed_version", {"torch": "2.13.0"}.get)
    assert peers.versions(peers.peers()) == {"torch": "2.13.0"}


def test_what_a_peer_prints_does_not_reach_stdout(buffers: GemmBuffers, capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(_buffers: GemmBuffers, _xs: object) -> Any:
        print("INFO loading kernels")
        return [], []

    assert peers.Peer("chatty", "torch", "torch", chatty).prepare(buffers, []) == ([], [])
    assert capsys.readouterr() == ("", "INFO loading kernels\n")
