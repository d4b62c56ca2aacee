"""How long a chain of dependent CUDA-core instructions takes by itself, on a GPU where nobody timed it.

A chain over several pipes takes between its longest pipe alone and the sum of them. Where between, only a measurement
tells. On the H100 that ships (mma.s8, in the same warps) I2F + FMUL + FFMA takes half of that range and I2F + FFMA a
tenth; but the first is also, to a few per cent, what three instructions take in the issue slots (3 / 128 cycle, more
than either pipe), so one GPU cannot tell what the rule is. Therefore:

- Where the pipes stand in the same proportion as on the measured GPU (8.6, 8.9, 9.0), the measured time is scaled.
- Elsewhere (8.0, which converts four times slower) the pipes are taken to add up: the cautious end, since a plan that
  counts on overlap which does not come is slower than FP16. It is also the end nearer to the one published figure, g128
  at 0.43 to 0.47 of FP16 on an A100 (arXiv 2606.08761). The interval of every predicted time has the other end.

A chain on one pipe has no such range: it is scaled, because dependent instructions and the loop around them cost a
little more than the pipe. No such time is ever called measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from apex4_probe.rates import Rates
from apex4_probe.strategies import PIPE

SAME_PROPORTION = 1.1  # measured lane rates lie up to 5 % below the architecture's


def pipe_cycles(instructions: Mapping[str, float], rates: Rates) -> dict[str, float]:
    """SM cycles per accumulator on every CUDA-core pipe that the chain uses. ApexError: a lane rate is not known."""
    cycles: dict[str, float] = {}
    for name, count in instructions.items():
        cycles[PIPE[name]] = cycles.get(PIPE[name], 0.0) + count / rates.instruction(name).per_clk
    return cycles


def carried_over(measured: float, instructions: Mapping[str, float], there: Rates, here: Rates) -> float:
    """SM cycles per accumulator ``here`` of a chain that took ``measured`` cycles ``there``; predicted."""
    pipes, ours = pipe_cycles(instructions, there), pipe_cycles(instructions, here)
    slower = [ours[pipe] / pipes[pipe] for pipe in pipes]
    if max(slower) > min(slower) * SAME_PROPORTION:
        return sum(ours.values())
    return measured * sum(ours.values()) / sum(pipes.values())
