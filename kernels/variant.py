"""What a kernel variant is: one way to multiply packed weights, its tile space, and how a tile becomes a launch.

Plain data and pure functions; compiling and launching are next door (``compile.py``, ``launch.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from apex4_probe.kernels.formats import Format, Granularity

MINIMUM_VERSION = (8, 0)  # cp.async, bf16, mma.sync m16n8k16 f16 and m16n8k32 s8 (PTX ISA)
RESERVED_BYTES = 1024  # of shared memory, by the driver, a CTA (CUDA C++ Programming Guide, 8.0 and later)


@dataclass(frozen=True)
class Tile:
    """One point of a variant's tile space. Its parameters become macros (``rows`` -> ``-DROWS=32``)."""

    parameters: tuple[tuple[str, int], ...]

    def __getitem__(self, name: str) -> int:
        return dict(self.parameters)[name]

    @property
    def name(self) -> str:
        """As profiles spell it: ``rows=32,warps=16,stages=2``."""
        return ",".join(f"{key}={value}" for key, value in self.parameters)


def tile(**parameters: int) -> Tile:
    return Tile(tuple(parameters.items()))


@dataclass(frozen=True)
class Shape:
    """y[m, n] = x[m, k] times the transpose of W[n, k]."""

    m: int
    n: int
    k: int

    @property
    def text(self) -> str:
        """For messages: ``M = 1, N = 4096, K = 4096``."""
        return f"M = {self.m}, N = {self.n}, K = {self.k}"


@dataclass(frozen=True)
class Chip:
    """What legality and launch depend on. ``shared_bytes``: the most that one CTA may ask for; ``target``: NVRTC's."""

    compute_capability: str
    target: str
    sm_count: int
    shared_bytes: int

    @property
    def version(self) -> tuple[int, int]:
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor)


@dataclass(frozen=True)
class Geometry:
    """How a kernel is launched. ``shared_bytes``: dynamic, a CTA. ``workspace_bytes``: of device memory that it may
    scribble on, uninitialised."""

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    workspace_bytes: int = 0


class Box(NamedTuple):
    """Of an output [M, N]."""

    tokens: int
    rows: int  # of the weight: neighbours in memory


@dataclass(frozen=True)
class Variant:
    """A catalogue record.

    ``source``: file in ``kernels/cuda`` whose entry point is ``gemm``; ``headers``: what it includes, in that folder;
    ``generated``: (include name, text) of what is written for a tile.
    ``tiles``: the legal space; ``default``: picks from it without having measured, for a shape that one of its tiles
    runs. ``refuses``: why a tile cannot run a shape on a chip, "" where it can. ``macros``: beside the tile's.
    ``strategy``: a name of apex4_probe/strategies.py. ``options``: further compiler options that its counts depend on,
    never from a file. ``native_on``: compute capabilities whose Tensor Cores execute its MMA, None: all that it runs
    on; elsewhere it is emulated, exact and slow: for correctness, never for speed. ``then_fp16``: the kernel
    writes the weight [N, K] in the activations' type to its workspace and nothing to out; torch's dense GEMM follows.
    ``activations``: the order of its INT8 activations where it is not that of ``mma.sync`` (``formats.py``).
    ``clocks``: of the busiest SM, by which its tiles compare; None: nothing better is known than for kernels at large.
    ``out_box``: what the kernel stores at once through a tensor map of out, its last argument; None: it takes none.
    """

    name: str
    format: Format
    granularity: Granularity
    strategy: str
    description: str
    source: str
    headers: tuple[str, ...]
    macros: tuple[tuple[str, int], ...]
    tiles: tuple[Tile, ...]
    default: Callable[[Shape, Chip], Tile]
    refuses: Callable[[Tile, Shape, Chip], str]
    geometry: Callable[[Tile, Shape, Chip], Geometry]
    options: tuple[str, ...] = ()
    native_on: tuple[str, ...] | None = None
    then_fp16: bool = False
    activations: Literal["", "int8_wgmma"] = ""
    clocks: Callable[[Tile, Shape, Chip], float] | None = None
    generated: Callable[[Tile], tuple[tuple[str, str], ...]] = lambda tile: ()
    out_box: Callable[[Tile], Box] | None = None

    def emulated_on(self, chip: Chip) -> str:
        """Why the variant is not fast on the chip, "" where its MMA is native."""
        if self.native_on is None or chip.compute_capability in self.native_on:
            return ""
        return (
            f"its MMA is emulated on compute capability {chip.compute_capability}: exact, but slow (native on "
            f"{', '.join(self.native_on)})"
        )
