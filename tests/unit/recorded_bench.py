"""A catalogue of two families and a bench that answers from arithmetic and takes time by a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from apex4_probe.deployment import GemmTiming
from apex4_probe.errors import ApexError
from apex4_probe.kernels.formats import Granularity
from apex4_probe.kernels.variant import Chip, Geometry, Shape, Tile, Variant, tile
from apex4_probe.tuning_plan import Pick

CHIP = Chip("9.0", "sm_90a", 132, 227 * 1024)


def _variant(
    name: str,
    granularity: Granularity,
    tiles: tuple[Tile, ...],
    refuses: Callable[[Tile, Shape, Chip], str] = lambda *_: "",
) -> Variant:
    def geometry(tile: Tile, shape: Shape, _chip: Chip) -> Geometry:
        tokens = dict(tile.parameters).get("tokens", shape.m)
        return Geometry((-(-shape.n // tile["rows"]), -(-shape.m // tokens), 1), 256, 0)

    return Variant(
        name=name, format="w4a8", granularity=granularity, strategy="widen" if granularity == "g128i" else "none",
        description="", source="", headers=(), macros=(), tiles=tiles, default=lambda *_: tiles[0],
        refuses=refuses, geometry=geometry,
    )  # fmt: skip


def _few_tokens(_tile: Tile, shape: Shape, _chip: Chip) -> str:
    return "up to 64 tokens" if shape.m > 64 else ""


SMALL = tuple(tile(rows=rows, stages=2) for rows in (32, 16, 64))
LARGE = tuple(tile(rows=rows, tokens=tokens, stages=3) for rows in (128, 64) for tokens in (256, 128, 64))
VARIANTS = (
    _variant("w4a8.small.channel", "channel", SMALL, _few_tokens),
    _variant("w4a8.small.g128i", "g128i", SMALL, _few_tokens),
    _variant("w4a8.mma.channel", "channel", LARGE),
    _variant("w4a8.mma.g128i", "g128i", LARGE),
)


@dataclass
class RecordedBench:
    """``us``: of a pick's name, the GEMM alone. ``broken``: names that do not compile; ``refuses``: that do not run."""

    us: Callable[[str, Shape], float] = lambda name, _shape: 20.0 if name in ("fp16", "fp8") else 10.0
    seconds_a_kernel: float = 0.1
    seconds_a_candidate: float = 0.1
    broken: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    lost_at: Shape | None = None
    now: float = 1000.0
    compiled: list[str] = field(default_factory=list)
    timed: list[tuple[Shape, list[str]]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def compile(self, picks: Sequence[Pick]) -> None:
        self.now += self.seconds_a_kernel * len(picks)
        for pick in picks:
            if pick.variant.name in self.broken:
                raise ApexError(f"{pick.variant.name} {pick.tile.name} does not compile: line 7")
        self.compiled += [_name(pick) for pick in picks]

    def release(self) -> None:
        pass

    def time(
        self, shape: Shape, picks: Sequence[Pick], baselines: Sequence[str], refused: Callable[[str, str], None]
    ) -> list[GemmTiming]:
        if shape == self.lost_at:
            raise ApexError("illegal address")
        self.timed.append((shape, [*baselines, *map(_name, picks)]))
        self.now += self.seconds_a_candidate * (len(picks) + len(baselines))
        records = []
        for name, format, granularity, strategy in [
            *((name, name, "none", "") for name in baselines),
            *((_name(p), p.variant.format, p.variant.granularity, p.variant.strategy) for p in picks),
        ]:
            if name in self.refuses:
                refused(name, "out of memory")
                continue
            variant, _, tile = name.partition(" ")
            records.append(
                GemmTiming.model_validate(
                    {
                        "n": shape.n, "k": shape.k, "m": shape.m, "variant": variant, "tile": tile,
                        "format": format, "granularity": granularity, "strategy": strategy,
                        "us": self.us(name, shape), "us_quantise": {"w4a8": 2.5, "fp8": 9.0}.get(format, 0.0),
                        "spread": 0.004, "samples": 15,
                    }
                )
            )  # fmt: skip
        return records


def _name(pick: Pick) -> str:
    return f"{pick.variant.name} {pick.tile.name}"
