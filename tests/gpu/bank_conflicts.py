"""Nsight Compute's CSV over reduced_matrix.py on stdin -> for each launch the share of shared-memory wavefronts that
bank conflicts added.

Exit code 1 where one exceeds LIMIT.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict

LIMIT = 0.02
CONFLICTS, WAVEFRONTS = "data_bank_conflicts_pipe", "data_pipe_lsu_wavefronts"


def main() -> int:
    output = list(sys.stdin)
    names = [line.strip() for line in output if line.startswith("w4a")]  # the program's own, a line a launch
    lines = [line for line in output if line.startswith('"')]
    launches: dict[str, dict[str, float]] = defaultdict(dict)
    for row in csv.DictReader(lines):
        launches[row["ID"]][row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    worst = 0.0
    for name, metrics in zip(names, launches.values(), strict=True):
        conflicts = sum(value for metric, value in metrics.items() if CONFLICTS in metric)
        wavefronts = sum(value for metric, value in metrics.items() if WAVEFRONTS in metric)
        share = conflicts / wavefronts if wavefronts else 0.0
        worst = max(worst, share)
        print(f"{name}: {share:.2%} of {wavefronts:.0f} wavefronts")
    print(f"worst of {len(launches)} launches: {worst:.2%}")
    return 0 if launches and worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
