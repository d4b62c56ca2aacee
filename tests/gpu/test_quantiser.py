"""The activation quantiser against the reference, bit by bit."""

import pytest

torch = pytest.importorskip("torch")

from apex4_probe.kernels import reference  # noqa: E402
from apex4_probe.kernels.compile import compile_all  # noqa: E402
from apex4_probe.kernels.hadamard import LARGEST_BLOCK  # noqa: E402
from apex4_probe.kernels.launch import chip  # noqa: E402
from apex4_probe.kernels.quantise import (  # noqa: E402
    INT8_KINDS,
    KIND_GROUP,
    KINDS,
    QuantisedActivations,
    _empty,
    _enqueue,
    kernel_for,
    quantise,
)

TOKENS = [1, 2, 7, 16, 17, 33, 64, 77, 1000]
WIDTHS = [64, 576, 896, 1536, 4096, 11008, 14336, 18944, 28672]
DTYPES = [torch.float16, torch.bfloat16]
INT4_KINDS = [kind for kind in KINDS if kind not in INT8_KINDS]
INT4_WIDTHS = [576, 896, 1536, 4096, 14336]
INT4_CALLS = [(1, torch.float16, 1.0), (33, torch.bfloat16, 0.8), (77, torch.float16, 0.8)]
LONG = [(65536, None), (65536, 1024), (65536, 32768), (40960, 8192), (49152, 16384)]
LONG_KINDS = ["int8", "int8_wgmma", "int4_g32", "int4_a128i"]


def blocks(k: int) -> list[int | None]:
    return [None, *sorted({64, min(k & -k, 128), min(k & -k, LARGEST_BLOCK)})]


def int4_blocks(k: int) -> list[int | None]:
    return [None, min(k & -k, LARGEST_BLOCK)]


@pytest.fixture(scope="module", autouse=True)
def compiled_by_all_cores():
    wanted = [(kind, dtype, block, k) for kind in INT8_KINDS for k in WIDTHS for block in blocks(k) for dtype in DTYPES]
    wanted += [
        (kind, dtype, block, k)
        for kind in INT4_KINDS
        for k in INT4_WIDTHS
        for block in int4_blocks(k)
        for dtype in DTYPES
    ]
    wanted += [(kind, torch.float16, block, k) for kind in LONG_KINDS for k, block in LONG]
    target = chip(torch.cuda.current_device()).target
    bf16 = torch.bfloat16
    compile_all(list({kernel_for(kind, dtype is bf16, block, k, target) for kind, dtype, block, k in wanted}))


def activations(m: int, k: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Tokens of very different magnitude with outliers, and among them those that go wrong first."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(m, k, device="cuda", generator=generator)
    x *= torch.exp(2 * torch.randn(m, 1, device="cuda", generator=generator))
    x[:, :: max(k // 7, 1)] *= 20
    x = x.to(dtype)
    info = torch.finfo(dtype)
    special = [
        torch.zeros(k),
        torch.full((k,), info.max),
        torch.full((k,), info.smallest_normal / 16),  # its inverse overflows in bf16
        torch.where(torch.arange(k) == k - 1, float("nan"), 1.0),
        torch.where(torch.arange(k) == k // 2, float("inf"), 1.0),
        torch.where(torch.arange(k) == 0, float("-inf"), torch.arange(k) % 5 - 2.0),
        torch.where(torch.arange(k) == k - 1, -1.0, 0.0),
        (torch.arange(k) % 255 - 127) / 2,  # halves: ties everywhere
        torch.where(torch.arange(k) % 2 == 0, info.max, info.min),
    ]
    for row, values in enumerate(special, start=m // 3):
        if row < m and m > 2:
            x[row] = values.to(dtype).to("cuda")
    return x


def same_bits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    if got.is_floating_point():
        return torch.equal(got.isnan(), expected.isnan()) and torch.equal(got.nan_to_num(-1), expected.nan_to_num(-1))
    return torch.equal(got, expected)


def without_padding(data: torch.Tensor, m: int, kind: str) -> torch.Tensor:
    """[m, bytes]: what tokens beyond m hold has no meaning."""
    halves = 1 if kind == "int8_wgmma" else 2
    tiles = data.view(-1, -(-m // 8), halves, 8, 128 // halves)  # block of k, tile of tokens, half, token
    return tiles.permute(1, 3, 0, 2, 4).reshape(-1, tiles.shape[0] * 128)[:m]


def int4_without_padding(data: torch.Tensor, m: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [m, bytes] and the bits of the groups' scales [m, groups]."""
    blocks = data.view(-(-k // 128), -(-m // 32), -1)
    codes = blocks[..., :2048].reshape(*blocks.shape[:2], 32, 64).permute(1, 2, 0, 3).flatten(0, 1).flatten(1)
    words = blocks[..., 2048:].contiguous().view(torch.int32).view(*blocks.shape[:2], -1, 2, 4, 2, 2)
    scales = words.permute(1, 3, 5, 4, 6, 0, 2).flatten(0, 4).flatten(1)  # kb mb group pair c tile e
    return codes[:m], scales[:m]


def check(got: QuantisedActivations, x: torch.Tensor, clip: float, hadamard: int | None) -> None:
    m = x.shape[0]
    if got.kind in INT8_KINDS:
        arranged = reference.arrange_int8_wgmma if got.kind == "int8_wgmma" else reference.arrange_int8
        q, scale, row_sum = reference.quantise_int8(x, clip, hadamard)
        assert same_bits(without_padding(got.data, m, got.kind), without_padding(arranged(q), m, got.kind))
        assert same_bits(got.row_sum, row_sum)
    elif got.kind == "int4_a128i":
        q, scale, group_scale = reference.quantise_int4_a128i(x, clip, hadamard)
        check_int4(got, reference.arrange_int4(q, group_scale))
    elif KIND_GROUP[got.kind] is None:
        q, scale = reference.quantise_int4(x, clip, hadamard)
        check_int4(got, reference.arrange_int4(q))
    else:
        q, of_groups = reference.quantise_int4(x, clip, hadamard, KIND_GROUP[got.kind])
        check_int4(got, reference.arrange_int4(q, of_groups))
        assert got.scale is None
        return
    assert same_bits(got.scale, scale)


def check_int4(got: QuantisedActivations, expected: torch.Tensor) -> None:
    (codes, scales), (wanted, wanted_scales) = (int4_without_padding(d, got.m, got.k) for d in (got.data, expected))
    assert torch.equal(codes, wanted)
    if KIND_GROUP[got.kind] is not None:
        as_values = torch.int32 if got.kind == "int4_a128i" else torch.float32
        assert same_bits(scales.view(as_values), wanted_scales.view(as_values))


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("kind", INT8_KINDS)
def test_int8_is_the_reference_to_the_bit(kind: str, k: int, dtype: torch.dtype):
    for hadamard in blocks(k):
        for i, m in enumerate(TOKENS):
            clip = (1.0, 0.8)[i % 2]
            x = activations(m, k, dtype, seed=m)
            check(quantise(x, kind=kind, clip=clip, hadamard=hadamard), x, clip, hadamard)


@pytest.mark.parametrize(
    ("kind", "k"), [(kind, k) for kind in INT4_KINDS for k in INT4_WIDTHS if k % (KIND_GROUP[kind] or 32) == 0]
)
def test_int4_is_the_reference_to_the_bit(kind: str, k: int):
    for hadamard in int4_blocks(k):
        for m, dtype, clip in INT4_CALLS:
            x = activations(m, k, dtype, seed=k)
            check(quantise(x, kind=kind, clip=clip, hadamard=hadamard), x, clip, hadamard)


def test_integer_group_scales_stay_within_1_and_16():
    """A group of zeros has 1; the one with the token's maximum 16, also where dividing rounds up beyond it."""
    x = activations(1000, 4096, torch.float16)
    x[5::50, :128] = 0
    codes, scales = int4_without_padding(quantise(x, kind="int4_a128i", clip=0.7).data, 1000, 4096)
    assert (int(scales.min()), int(scales.max())) == (1, 16)
    finite = x.isfinite().all(1) & (x != 0).any(1)
    assert bool((scales.amax(1) == 16)[finite].all())
    assert bool((scales[5::50, 0] == 1).all()) and not codes[5::50, :64].any()


@pytest.mark.parametrize(("k", "hadamard"), LONG)
@pytest.mark.parametrize("kind", LONG_KINDS)
def test_rows_beyond_the_register_file(kind: str, k: int, hadamard: int | None):
    x = activations(19, k, torch.float16)
    check(quantise(x, kind=kind, clip=0.9, hadamard=hadamard), x, 0.9, hadamard)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_what_the_buffers_held_and_twice_is_the_same(kind: str):
    m, k, hadamard = 77, 4096, 4096
    x = activations(m, k, torch.float16)
    results = []
    for filler in (0x00, 0xFF, 0xA5):
        to = _empty(kind, m, k, x.device)
        for tensor in (to.data, to.scale, to.row_sum):
            if tensor is not None:
                tensor.view(torch.uint8).fill_(filler)
        _enqueue(x, to, 1.0, hadamard, pdl=True, device=x.get_device())
        results.append(to)
    for to in results:
        check(to, x, 1.0, hadamard)


def test_on_another_stream_and_in_a_graph():
    x = activations(33, 4096, torch.bfloat16)
    quantise(x, kind="int8")  # loaded before the capture
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = quantise(x, kind="int8", pdl=True)
    x.copy_(activations(33, 4096, torch.bfloat16, seed=1))
    graph.replay()
    torch.cuda.synchronize()
    check(captured, x, 1.0, None)


def test_no_tokens_no_launch():
    empty = quantise(torch.empty(0, 4096, dtype=torch.float16, device="cuda"), kind="int8")
    assert (empty.m, empty.k, empty.data.numel(), empty.scale.shape, empty.row_sum.shape) == (0, 4096, 0, (0,), (0,))


def test_a_view_off_sixteen_bytes_is_refused():
    x = torch.zeros(2 * 64 + 1, dtype=torch.float16, device="cuda")[1:].view(2, 64)
    with pytest.raises(ValueError, match="x must be aligned to 16 bytes"):
        quantise(x, kind="int8")
