"""``linear`` and ``gemm``: which kernel is launched with which arguments, and what is refused before anything is.

There is no GPU here: CPU tensors pass for a GPU's, and a driver that remembers stands where CUDA's does.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_driver import FakeDriver, Launched
from sample_profile import sample_device, sample_environment, sample_profile

import apex4_probe as apex
from apex4_probe import __version__
from apex4_probe.deployment import KernelTable, Profile
from apex4_probe.errors import ApexError, ProfileError
from apex4_probe.kernels import catalogue, gemm, launch, quantise
from apex4_probe.kernels.compile import Kernel
from apex4_probe.kernels.packing import PackedWeight, pack, random_packed, unpack
from apex4_probe.kernels.quantise import QuantisedActivations
from apex4_probe.kernels.variant import Chip, Shape
from apex4_probe.profile_file import seal
from apex4_probe.runtime import choice

HOPPER = Chip("9.0", "sm_90a", 132, 232_448)
STREAM = 0x5712EA
PDL = ((6, 1),)  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class Machine:
    """A Hopper GPU of which everything but the arithmetic exists."""

    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.loaded: list[tuple[Kernel, int]] = []
        self.discovered = 0
        self.second_gpu: set[int] = set()  # addresses of its tensors
        self.current = 0
        self.device = sample_device()
        self.environment = sample_environment()

    def load_kernel(self, kernel: Kernel, entry: str, signature: str, device: int) -> launch.Function:
        assert entry == ("quantise" if kernel.name.startswith("quantise") else "gemm")
        self.loaded.append((kernel, device))
        return self.driver.function(kernel.name, signature)

    def cuda_device(self, _name: str, tensor: Any) -> int:
        return getattr(tensor, "gpu", int(tensor.data_ptr() in self.second_gpu))

    def discover(self, selection: int) -> list[Any]:
        self.discovered += 1
        return [SimpleNamespace(device=self.device, driver="580.95.05", cuda="13.0")]

    @contextmanager
    def use(self, device: int) -> Any:
        before, self.current = self.current, device
        yield
        self.current = before

    @property
    def launches(self) -> list[Launched]:
        return self.driver.launches

    @property
    def gemm(self) -> Launched:
        (found,) = [one for one in self.launches if not one.kernel.startswith("quantise")]
        return found


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    here = Machine()
    for module in (launch, quantise):
        monkeypatch.setattr(module, "cuda_device", here.cuda_device)
        monkeypatch.setattr(module, "load_kernel", here.load_kernel)
    for module in (launch, quantise, choice):
        monkeypatch.setattr(module, "chip", lambda _device: HOPPER)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: here.current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM + device))
    monkeypatch.setattr(torch.cuda, "device", here.use)
    monkeypatch.setattr(choice, "discover", here.discover)
    monkeypatch.setattr(choice, "environment", lambda _driver, _cuda: here.environment)
    for cached in (gemm._prepared, quantise._launch, launch.prepared, choice.choose, choice._held_tables):
        cached.cache_clear()
    return here


def activations(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def weight(format: Any = "w4a8", granularity: Any = "channel", n: int = 64, k: int = 256) -> PackedWeight:
    return random_packed(n, k, format, granularity, "cpu", torch.Generator().manual_seed(2))


# What is launched


@pytest.mark.parametrize(
    ("granularity", "kind", "has_token_scale"),
    [("channel", "int4", True), ("a128i", "int4_a128i", True), ("g128", "int4_g128", False),
     ("g64", "int4_g64", False), ("g32", "int4_g32", False)],
)  # fmt: skip
def test_w4a4_quantises_to_int4_as_the_granularity_wants(
    machine: Machine, granularity: Any, kind: str, has_token_scale: bool
) -> None:
    x, packed = activations(5, 256), weight("w4a4", granularity)
    y = apex.linear(x, packed)
    quantiser, multiply = machine.launches
    assert quantiser.kernel.split()[:2] == ["quantise", kind]
    assert multiply.kernel.startswith(f"w4a4.small.{granularity} ")
    _, data, scale, row_sum, *_ = quantiser.arguments
    assert (bool(scale), row_sum) == (has_token_scale, 0)
    assert multiply.arguments == (
        packed.data.data_ptr(), packed.row_scale.data_ptr(), data, scale, 0, 0, y.data_ptr(), 0, 5, 64, 256,
    )  # fmt: skip


def test_w4a8_quantises_and_multiplies_what_was_quantised(machine: Machine) -> None:
    x, packed, bias = activations(5, 256), weight(), activations(64)
    y = apex.linear(x, packed, bias)
    assert (y.shape, y.dtype) == ((5, 64), torch.float16)
    quantiser, multiply = machine.launches
    variant, tile = catalogue.default_choice("w4a8", "channel", Shape(5, 64, 256), HOPPER)
    assert multiply.kernel == f"{variant.name} {tile.name}"
    assert multiply.geometry == variant.geometry(tile, Shape(5, 64, 256), HOPPER)
    assert (quantiser.stream, multiply.stream) == (STREAM, STREAM)
    source, data, scale, row_sum, m, k, clip = quantiser.arguments
    assert (source, m, k, clip) == (x.data_ptr(), 5, 256, 1.0)
    assert multiply.arguments == (
        packed.data.data_ptr(), packed.row_scale.data_ptr(), data, scale, row_sum, bias.data_ptr(), y.data_ptr(), 0,
        5, 64, 256,
    )  # fmt: skip
    # The kernel may begin while our own quantiser runs, the quantiser not while the caller's last kernel does.
    assert (quantiser.attributes, multiply.attributes) == ((), PDL)


def test_w4a16_reads_activations_as_they_are(machine: Machine) -> None:
    x, packed = activations(3, 256, dtype=torch.bfloat16), weight("w4a16", "g128")
    y = apex.linear(x, packed)
    assert y.dtype == torch.bfloat16
    (multiply,) = machine.launches
    assert multiply.kernel.startswith("w4a16.small.g128 ")
    assert multiply.arguments == (
        packed.data.data_ptr(), packed.row_scale.data_ptr(), x.data_ptr(), 0, 0, 0, y.data_ptr(), 0, 3, 64, 256,
    )  # fmt: skip
    assert multiply.attributes == ()
    assert "-DOUT_BF16=1" in machine.loaded[0][0].options


@pytest.mark.parametrize("with_bias", [False, True])
def test_w4a16_for_many_tokens_multiplies_the_weight_that_was_written(machine: Machine, with_bias: bool) -> None:
    x, packed = activations(65, 256), weight("w4a16", "g64")
    bias = activations(64) if with_bias else None
    dense = unpack(packed).dequantised(torch.float16)

    def dequantise(launched: Launched) -> None:
        ctypes.memmove(int(launched.arguments[7]), dense.data_ptr(), 2 * dense.numel())

    machine.driver.execute = dequantise
    y = apex.linear(x, packed, bias)
    assert machine.gemm.kernel.startswith("w4a16.fp16.g64 ")
    assert torch.equal(y, torch.nn.functional.linear(x, dense, bias))


def test_k_that_ends_within_a_block_is_padded_for_the_kernel_alone(machine: Machine) -> None:
    apex.linear(activations(2, 160), weight(k=160))
    quantiser, multiply = machine.launches
    assert quantiser.arguments[4:6] == (2, 160)
    assert multiply.arguments[-3:] == (2, 64, 256)


def test_clip_and_hadamard_come_from_the_packed_weight(machine: Machine) -> None:
    packed = pack(activations(64, 256), format="w4a8", granularity="channel", hadamard=64, act_clip=0.75)
    apex.linear(activations(2, 256), packed)
    assert machine.launches[0].arguments[-1] == 0.75
    assert "-DHADAMARD=64" in machine.loaded[0][0].options


@pytest.mark.parametrize("shape", [(256,), (1, 256), (2, 3, 256), (2, 0, 256), (0, 256)])
def test_leading_dimensions_stay_and_no_tokens_launch_nothing(machine: Machine, shape: tuple[int, ...]) -> None:
    y = apex.linear(activations(*shape), weight())
    assert y.shape == (*shape[:-1], 64)
    tokens = y.numel() // 64
    assert len(machine.launches) == (2 if tokens else 0)
    assert [one.arguments[-3] for one in machine.launches[1:]] == ([tokens] if tokens else [])


def test_kernels_are_loaded_once_and_for_every_type_and_gpu(machine: Machine) -> None:
    packed = weight()
    for _ in range(3):
        apex.linear(activations(2, 256), packed)
    assert len(machine.loaded) == 2
    apex.linear(activations(2, 256, dtype=torch.bfloat16), packed)
    assert len(machine.loaded) == 4
    assert len(machine.launches) == 8


def test_another_gpu_than_the_current_one_is_made_current_meanwhile(machine: Machine) -> None:
    x, packed, out = activations(2, 256), weight(), torch.empty(2, 64, dtype=torch.float16)
    machine.second_gpu = {x.data_ptr(), packed.data.data_ptr(), out.data_ptr()}
    seen = []
    machine.driver.execute = lambda launched: seen.append((machine.current, launched.stream))
    variant, tile = catalogue.default_choice("w4a8", "channel", Shape(2, 64, 256), HOPPER)
    assert gemm.gemm(x, packed, variant, tile, out=out) is out
    assert seen == [(1, STREAM + 1)] * 2
    assert machine.current == 0


def test_activations_quantised_beforehand_are_used_as_they_are(machine: Machine) -> None:
    packed = weight()
    ready = quantise.quantise(activations(4, 256), kind="int8")
    machine.launches.clear()
    variant, tile = catalogue.default_choice("w4a8", "channel", Shape(4, 64, 256), HOPPER)
    y = gemm.gemm(ready, packed, variant, tile, dtype=torch.bfloat16)
    assert y.dtype == torch.bfloat16
    assert ready.row_sum is not None
    assert machine.gemm.arguments[2:5] == (ready.data.data_ptr(), ready.scale.data_ptr(), ready.row_sum.data_ptr())
    assert machine.gemm.attributes == ()
    gemm.gemm(ready, packed, variant, tile, pdl=True)
    assert machine.launches[-1].attributes == PDL


def test_programmatic_dependent_launch_is_passed_on_to_the_first_kernel(machine: Machine) -> None:
    variant, tile = catalogue.default_choice("w4a8", "channel", Shape(4, 64, 256), HOPPER)
    gemm.gemm(activations(4, 256), weight(), variant, tile, pdl=True)
    assert [one.attributes for one in machine.launches] == [PDL, PDL]


def test_precompile_loads_what_calls_will_launch(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Kernel] = []
    monkeypatch.setattr(gemm, "compile_all", compiled.extend)
    picks = [catalogue.default_choice("w4a8", "channel", Shape(m, 64, 256), HOPPER) for m in (1, 1, 100)]
    gemm.precompile(picks, 0, dtype=torch.bfloat16, quantisers=[(256, None), (256, 64)])
    assert [kernel for kernel, _ in machine.loaded] == compiled
    assert [kernel.name.split()[0] for kernel in compiled] == [
        "w4a8.small.channel", "w4a8.wgmma.channel", "quantise", "quantise", "quantise", "quantise"
    ]  # fmt: skip
    assert "-DOUT_BF16=1" in compiled[0].options
    orders = ["-DWGMMA=1" in kernel.options for kernel in compiled[2:]]
    assert orders == [False, False, True, True], "every quantiser in the order of either kernel"
    compiled.clear()
    picks = [catalogue.default_choice("w4a4", granularity, Shape(9, 64, 256), HOPPER) for granularity in ("g32", "g64")]
    gemm.precompile(picks, 0, quantisers=[(256, None)])
    assert [" ".join(kernel.name.split()[:2]) for kernel in compiled[2:]] == ["quantise int4_g32", "quantise int4_g64"]


# What a profile chooses


def entry(m_max: int, variant: str, tile: str) -> dict[str, Any]:
    return {
        "m_max": m_max, "variant": variant, "tile": tile, "stages": 1, "split_k": 1, "us": 5.0, "us_quantise": 1.0,
        "speedup": 2.0, "origin": "measured",
    }  # fmt: skip


def other_tile(name: str, shape: Shape) -> str:
    """A legal tile that is not the default: launching it can only come from the profile."""
    variant = catalogue.by_name(name)
    default = variant.default(shape, HOPPER)
    return next(one for one in variant.tiles if one != default and not variant.refuses(one, shape, HOPPER)).name


def profile(*entries: dict[str, Any], n: int = 64, k: int = 256, granularity: str = "g128i", **changes: Any) -> Profile:
    table = KernelTable.model_validate(
        {"n": n, "k": k, "format": "w4a8", "granularity": granularity, "kernels": list(entries)}
    )
    return seal(sample_profile(tool_version=__version__, **{"kernels": [table], **changes}))


SMALL_8 = other_tile("w4a8.small.g128i", Shape(8, 64, 256))
SMALL_64 = other_tile("w4a8.small.g128i", Shape(64, 64, 256))
MMA = other_tile("w4a8.mma.g128i", Shape(2048, 64, 256))
TUNED = (entry(8, "w4a8.small.g128i", SMALL_8), entry(64, "w4a8.small.g128i", SMALL_64),
         entry(2048, "w4a8.mma.g128i", MMA))  # fmt: skip


@pytest.mark.parametrize(
    ("m", "launched"),
    [
        (1, f"w4a8.small.g128i {SMALL_8}"),
        (8, f"w4a8.small.g128i {SMALL_8}"),
        (9, f"w4a8.small.g128i {SMALL_64}"),
        (64, f"w4a8.small.g128i {SMALL_64}"),
        (65, f"w4a8.mma.g128i {MMA}"),
        (2048, f"w4a8.mma.g128i {MMA}"),
        (5000, f"w4a8.mma.g128i {MMA}"),
    ],
)
def test_a_profile_chooses_by_the_next_larger_m(machine: Machine, m: int, launched: str) -> None:
    apex.linear(activations(m, 256), weight(granularity="g128i"), profile=profile(*TUNED))
    assert machine.gemm.kernel == launched


@pytest.mark.parametrize(
    ("packed", "m", "entries"),
    [
        (weight(granularity="g128i", n=96), 4, TUNED),  # another N
        (weight(granularity="g128i", k=384), 4, TUNED),  # another K
        (weight(granularity="channel"), 4, TUNED),  # another granularity
        (weight("w4a16", "g128"), 4, TUNED),  # another format
        (weight(granularity="g128i"), 100, TUNED[:1]),  # more tokens than the tuned kernel can hold
    ],
)
def test_where_a_profile_has_nothing_the_safe_default_runs(
    machine: Machine, packed: PackedWeight, m: int, entries: tuple[dict[str, Any], ...]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apex.linear(activations(m, packed.k), packed, profile=profile(*entries))
    shape = Shape(m, packed.n, packed.k)
    variant, tile = catalogue.default_choice(packed.format, packed.granularity, shape, HOPPER)
    assert machine.gemm.kernel == f"{variant.name} {tile.name}"


def test_a_profile_is_held_against_the_machine_once(machine: Machine) -> None:
    used = profile(*TUNED)
    for m in (1, 2, 3, 100):
        apex.linear(activations(m, 256), weight(granularity="g128i"), profile=used)
    assert machine.discovered == 1
    apex.linear(activations(1, 256), weight(granularity="g128i"), profile=used.model_copy())
    assert machine.discovered == 2  # another object may hold anything


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        (
            (TUNED[0], entry(64, "w4a8.small.g128i", "rows=32,warps=9999")),
            ("kernels[0].kernels[1].tile", "'rows=32,warps=9999'", "w4a8.small.g128i has no tile", "nearest"),
        ),
        (
            (entry(64, "w4a8.small.g128i", "rows=32 --fmad=false"),),
            ("kernels[0].kernels[0].tile", "'rows=32 --fmad=false'"),
        ),
        (
            (entry(64, "w4a8.warp.g128i", SMALL_64),),
            ("kernels[0].kernels[0].variant", "'w4a8.warp.g128i'", "w4a8.small.g128i, "),
        ),
        (
            (entry(64, "w4a8.small.channel", SMALL_64),),
            ("kernels[0].kernels[0].variant", "w4a8.small.channel is for w4a8 channel", "w4a8 g128i"),
        ),
    ],
)
def test_what_the_catalogue_lacks_is_refused_whatever_the_shape(
    machine: Machine, entries: tuple[dict[str, Any], ...], parts: tuple[str, ...]
) -> None:
    for packed in (weight(granularity="g128i"), weight(n=96)):
        with pytest.raises(ProfileError) as caught:
            apex.linear(activations(2, 256), packed, profile=profile(*entries))
        assert [part for part in parts if part not in str(caught.value)] == []
    assert machine.launches == []


@pytest.mark.parametrize(
    ("device", "changes", "parts"),
    [
        ({"name": "NVIDIA H200"}, {}, ("device.name", "NVIDIA H100 80GB HBM3 in the profile", "NVIDIA H200 here")),
        ({"compute_capability": "8.0"}, {}, ("device.compute_capability", "9.0 in the profile", "8.0 here")),
        ({"sm_count": 114}, {}, ("device.sm_count", "132 in the profile", "114 here")),
        ({"mig": "1g.10gb"}, {}, ("device.mig", "the whole GPU in the profile", "1g.10gb here")),
        ({}, {"schema_version": "9.3"}, ("schema_version", "9.3 in the profile", "1.")),
    ],
)
def test_a_profile_of_another_machine_is_refused_with_field_and_both_values(
    machine: Machine, device: dict[str, Any], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    machine.device = sample_device(**device)
    for _ in range(2):  # and again: a refusal is not forgotten
        with pytest.raises(ProfileError) as caught:
            apex.linear(activations(2, 256), weight(granularity="g128i"), profile=profile(*TUNED, **changes))
        assert [part for part in parts if part not in str(caught.value)] == []
    assert machine.launches == []


def test_a_profile_changed_after_it_was_written_is_refused() -> None:
    sealed = profile(*TUNED)
    tampered = sealed.model_copy(update={"kernels": profile(TUNED[0]).kernels})
    with pytest.raises(ProfileError, match="checksum is "):
        apex.linear(activations(2, 256), weight(granularity="g128i"), profile=tampered)


def test_what_may_move_its_figures_is_warned_of_once(machine: Machine) -> None:
    machine.environment = sample_environment(driver="570.1")
    used = profile(*TUNED)
    with pytest.warns(UserWarning, match=r"environment\.driver is 580\.95\.05 there and 570\.1 here") as caught:
        for m in (1, 2):
            apex.linear(activations(m, 256), weight(granularity="g128i"), profile=used)
    assert len(caught) == 1
    assert caught[0].filename == __file__


# What the caller says


def test_variant_and_tile_by_hand(machine: Machine) -> None:
    variant = catalogue.by_name("w4a8.mma.channel")
    tile = variant.tiles[-1]
    for given in ((variant, tile), (variant.name, tile.name)):
        apex.linear(activations(2, 256), weight(), variant=given[0], tile=given[1])
    assert [one.kernel for one in machine.launches if one.kernel.startswith("w4a8")] == [
        f"{variant.name} {tile.name}"
    ] * 2
    machine.launches.clear()
    apex.linear(activations(2, 256), weight(), variant=variant)
    assert machine.gemm.kernel == f"{variant.name} {variant.default(Shape(2, 64, 256), HOPPER).name}"


@pytest.mark.parametrize(
    ("m", "given", "message"),
    [
        (2, {"variant": "w4a8.none.channel"}, r"variant: the catalogue has no variant 'w4a8\.none\.channel'"),
        (
            2,
            {"variant": "w4a8.mma.g128"},
            r"variant: w4a8\.mma\.g128 does not multiply w4a8 channel .*w4a8\.small\.c",
        ),
        (65, {"variant": "w4a8.small.channel"}, r"variant: w4a8\.small\.channel cannot run M = 65"),
        (2, {"variant": "w4a8.mma.channel", "tile": "rows=1"}, r"tile: w4a8\.mma\.channel has no tile 'rows=1'"),
        (65, {"variant": "w4a8.small.channel", "tile": SMALL_64}, r"tile: w4a8\.small\.channel .* cannot run M = 65"),
        (2, {"tile": SMALL_64}, r"tile is given without variant"),
        (2, {"profile": "profile.yaml"}, "profile must be a Profile, as load_profile returns it, not str"),
        (2, {"variant": 3}, r"variant must be one of variants\(\) or its name, not int"),
        (2, {"variant": "w4a8.mma.channel", "tile": {"rows": 128}}, "tile must be one of .* or its name, not dict"),
        (2, {"variant": "w4a8.mma.channel", "profile": profile(*TUNED)}, r"variant and profile are both given"),
    ],
)
def test_what_cannot_be_done_by_hand_names_the_argument(
    machine: Machine, m: int, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apex.linear(activations(m, 256), weight(), **given)
    assert machine.launches == []


def test_every_variant_is_listed() -> None:
    assert apex.variants() == catalogue.VARIANTS


# Bad input


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, two bytes further on."""
    room = torch.empty(tensor.numel() + 8, dtype=tensor.dtype)
    return room[1 : 1 + tensor.numel()].view(tensor.shape).copy_(tensor)


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    tensor.gpu = 1  # type: ignore[attr-defined]
    return tensor


def huge(m: int, k: int) -> torch.Tensor:
    """More elements than a test machine holds."""
    tensor = torch.empty(m, k, dtype=torch.float16, device="meta")
    tensor.gpu = 0  # type: ignore[attr-defined]
    return tensor


X, W, B = activations(4, 256), weight(), activations(64)


@pytest.mark.parametrize(
    ("x", "packed", "bias", "message"),
    [
        (X.float(), W, None, r"x must be fp16 or bf16, not torch\.float32: convert it with half\(\) or bfloat16\(\)"),
        (X.numpy(), W, None, r"x must be a torch\.Tensor, not ndarray"),
        (X, X, None, "packed must be a PackedWeight, as pack returns it, not Tensor"),
        (X[:, :0], replace(W, k=0), None, "packed: K = 0 must be a positive multiple of 32"),
        (X, W, True, r"bias must be a torch\.Tensor, not bool"),
        (X[:, :128], W, None, r"x must be \[\.\.\., 256\], the packed weight's K, not \[4, 128\]"),
        (torch.tensor(1.0, dtype=torch.float16), W, None, r"x must be \[\.\.\., 256\]"),
        (activations(256, 4).T, W, None, r"x must be contiguous, but has strides \(1, 4\)"),
        (activations(4, 512)[:, ::2], W, None, "x must be contiguous"),
        (activations(4, 512)[:, :256], W, None, "x must be contiguous"),
        (misaligned(X), W, None, "x must be aligned to 16 bytes"),
        (X, replace(W, data=elsewhere(W.data.clone())), None, "packed is on cuda:1 and x on cuda:0"),
        (X, replace(W, layout_version=3), None, r"packed\.layout_version is 3; this version reads 2"),
        (X, replace(W, arch="tcgen05"), None, "arch must be 'mma', .*not 'tcgen05'"),
        (X, replace(W, data=W.data[:-1]), None, r"packed\.data must be contiguous torch\.uint8"),
        (X, replace(W, data=misaligned(W.data)), None, r"packed\.data must be aligned to 16 bytes"),
        (X, replace(W, row_scale=W.row_scale.double()), None, r"packed\.row_scale must be contiguous torch\.float32"),
        (X, W, B[:32], r"bias must be contiguous torch\.float16 \[64\], not torch\.float16 \[32\]"),
        (X, W, B.float(), r"bias must be contiguous torch\.float16 \[64\], not torch\.float32"),
        (X, W, B.bfloat16(), "bias must be contiguous torch.float16"),
        (X, W, activations(64, 1), "bias must be contiguous"),
        (X, W, activations(128)[::2], r"bias must be contiguous .* with strides \(2,\)"),
        (X, W, elsewhere(B.clone()), "bias is on cpu and x on cuda:0"),
        (X, W, misaligned(B), "bias must be aligned to 16 bytes"),
        (huge(2**23, 256), W, None, "x has 8388608 tokens, too many for N = 64, K = 256"),
        (huge(2**21, 256), weight(n=1024), None, "x has 2097152 tokens, too many for N = 1024, K = 256"),
    ],
)
def test_bad_input_names_the_argument(machine: Machine, x: Any, packed: PackedWeight, bias: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apex.linear(x, packed, bias)
    assert machine.launches == []


def test_a_tensor_that_is_on_no_gpu_is_sent_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"x is on cpu and kernels run on a GPU: move it there with to\(\), or call reference_linear"
    ):
        apex.linear(X, W)
    assert apex.reference_linear(X, W).shape == (4, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": torch.empty(4, 32, dtype=torch.float16)}, r"out must be contiguous torch\.float16 \[4, 64\]"),
        ({"out": torch.empty(4, 64, dtype=torch.bfloat16)}, "out must be contiguous torch.float16"),
        ({"out": torch.empty(64, 4, dtype=torch.float16).T}, "out must be contiguous"),
        ({"out": misaligned(torch.zeros(4, 64, dtype=torch.float16))}, "out must be aligned to 16 bytes"),
        ({"out": elsewhere(torch.empty(4, 64, dtype=torch.float16))}, "out is on cpu and x on cuda:0"),
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16 and y has that of x"),
    ],
)
def test_bad_output_names_the_argument(machine: Machine, changes: dict[str, Any], message: str) -> None:
    variant, tile = catalogue.default_choice("w4a8", "channel", Shape(4, 64, 256), HOPPER)
    with pytest.raises(ValueError, match=message):
        gemm.gemm(X, W, variant, tile, **changes)
    assert machine.launches == []


def test_activations_and_variant_that_do_not_suit_the_weight(machine: Machine) -> None:
    variant, tile = catalogue.default_choice("w4a8", "channel", Shape(4, 64, 256), HOPPER)
    ready = quantise.quantise(X, kind="int8")
    machine.launches.clear()
    cases: list[tuple[Any, PackedWeight, dict[str, Any], str]] = [
        (quantised(ready, kind="int4"), W, {}, r"x is quantised to int4, which w4a8\.small\.channel does not multiply"),
        (quantised(ready, kind="int8_wgmma"), W, {}, "x is quantised to int8_wgmma, which w4a8"),
        (ready, weight("w4a16", "channel"), {}, r"variant w4a8\.small\.channel multiplies w4a8 .* packed is w4a16"),
        (ready, weight(k=384), {}, "x has K = 256, and packed has K = 384"),
        (ready, W, {"dtype": torch.float32}, "dtype must be fp16 or bf16, not torch.float32"),
        (X, weight(granularity="g128i"), {}, r"variant w4a8\.small\.channel multiplies w4a8 channel .* w4a8 g128i"),
    ]
    for x, packed, more, message in cases:
        with pytest.raises(ValueError, match=message):
            gemm.gemm(x, packed, variant, tile, **more)
    with pytest.raises(ApexError, match="cannot run M = 100, N = 64, K = 256 on sm_90a: "):
        gemm.gemm(activations(100, 256), W, variant, tile)
    assert [one for one in machine.launches if one.kernel.startswith("w4a8")] == []


def quantised(ready: QuantisedActivations, **changes: Any) -> QuantisedActivations:
    return replace(ready, **changes)


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, apex4_probe; apex4_probe.load_profile; print([m for m in ('torch', 'cupy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert {"pack", "linear", "reference_linear", "variants"} <= set(apex.__all__)
    assert {"pack_quantised", "refit", "refit_groups"} <= set(apex.__all__)
    for name in apex.__all__:
        assert getattr(apex, name) is not None
