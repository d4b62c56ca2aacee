"""Imports point one way. Read from the sources by ``ast``, lazy imports inside functions included.

cli -> jobs -> flow -> reports, planner -> balance, deployment -> architecture
                    -> microbench -> kernels -> architecture
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "apex4_probe": "apex4_probe",
    **{name: f"apex4_probe.{name}" for name in ("microbench", "kernels", "profiles", "reports")},
}

# What a module or package of ours may import of ours, beside itself. A package's name stands for all its modules.
DATA = {"errors", "files", "strict_yaml", "profiles"}
FACTS = DATA | {"architecture"}
RECORDS = FACTS | {"deployment", "profile_file", "compare_records", "bench_records", "sass_records", "host_records"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "strict_yaml": {"errors"},
    "profiles": set(),
    "architecture": DATA,
    "frames": {"errors"},
    "deployment": FACTS | {"frames"},
    "profile_file": RECORDS,
    "compare_records": RECORDS,
    "bench_records": RECORDS,
    "sass_records": RECORDS,
    "host_records": RECORDS,
    "kernels": FACTS,
    "microbench": FACTS | {"kernels", "deployment", "nvml"},  # its figures are records; its clocks are NVML's
    # A report sets a profile beside the shipped one, draws the roofline from the rates that a plan is made from, and
    # tells which timing is the fastest and which layers run as one GEMM as the planner does.
    "reports": RECORDS | {"health", "rates", "gemm_time", "sass_bounds", "selection", "candidates"},
    "cuda_extra": set(),
    "nvml": {"errors"},
    "checkout": set(),
    "output_folder": {"errors"},
    "progress": set(),
    "plot": RECORDS | {"reports"},
    # What a model calls: it follows a profile, after holding it against the GPU that is here.
    "runtime": RECORDS | {"kernels", "verification", "discovery"},
}
# Decisions: pure functions over records. They know no GPU, no kernel, no report.
DECISIONS = {
    "models", "workload", "datasheets", "rates", "overlap", "quality", "balance", "gemm_time", "candidates",
    "explanation", "planner", "prediction", "verification", "shipped", "strategies", "chain", "co_issue_notes",
    "own_datasheet", "assumptions", "health", "sass_bounds", "hot_loops",
    "selection", "field", "rules",
    "comparison", "compare_rates", "compare_regions", "compare_changes", "causes", "host_findings", "all_reduce",
}  # fmt: skip
# Effects at the edge, from the machine to the verbs.
EDGE = (
    "discovery", "doctor", "tile_time", "tuning_plan", "tuning", "gemm_bench", "flow", "emit", "predict_job",
    "descriptions", "show_job", "verify_job", "compare_job", "worker", "workers", "host_measure", "host_job", "run_job",
    "peers", "bench_plan", "bench_job", "sass_job", "cli_frame", "cli",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of ours by the name it is imported by."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(tree: ast.AST, module: str, is_package: bool, ours: Iterable[str]) -> Iterator[str]:
    """Modules of ours that ``module`` imports; a name imported from a package counts as a module where it is one."""
    ours = set(ours)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in ours else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "apex4_probe")


def unit(module: str) -> str:
    """The part of the house that a module belongs to: its package, or its own name; "" for the package itself."""
    return [*module.split("."), ""][1]


def edges() -> list[tuple[str, str]]:
    found = modules()
    return [
        (module, target)
        for module, path in found.items()
        for target in imports(ast.parse(path.read_text()), module, path.name == "__init__.py", found)
    ]


def allowed(source: str, target: str) -> bool:
    if source == target or (target == "" and source not in ("kernels", "microbench")):
        return True  # the package itself: its version
    if source == "":
        # what apex4_probe exports
        return target in ("flow", "predict_job", "plot", "profile_file", "compare_job", "kernels", "runtime")
    if source in EDGE:
        later = EDGE[EDGE.index(source) :]
        return target not in later
    if source in DECISIONS:
        return target in DECISIONS | RECORDS
    return target in ALLOWED[source]


def test_every_module_has_its_place() -> None:
    known = {*ALLOWED, *DECISIONS, *EDGE, ""}
    assert sorted({unit(module) for module in modules()} - known) == []


def test_imports_point_one_way() -> None:
    found = edges()
    assert len(found) > 20
    assert [f"{source} imports {target}" for source, target in found if not allowed(unit(source), unit(target))] == []


def test_there_is_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for source, target in edges():
        if unit(source) != unit(target) and "" not in (unit(source), unit(target)):  # "" only re-exports, lazily
            graph.setdefault(unit(source), set()).add(unit(target))
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError naming the cycle
    assert (
        order.index("errors")
        < order.index("architecture")
        < order.index("planner")
        < order.index("flow")
        < order.index("cli")
    )


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("kernels", "deployment"),
        ("kernels", "microbench"),
        ("microbench", "planner"),
        ("microbench", "discovery"),
        ("planner", "microbench"),
        ("planner", "reports"),
        ("reports", "planner"),
        ("architecture", "deployment"),
        ("flow", "cli"),
        ("discovery", "flow"),
        ("run_job", "cli"),
        ("kernels", ""),
        ("kernels", "runtime"),
        ("runtime", "planner"),
        ("runtime", "reports"),
    ],
)
def test_what_must_not_be_imported_is_refused(source: str, target: str) -> None:
    assert not allowed(source, target)


@pytest.mark.parametrize(
    ("line", "module", "is_package", "expected"),
    [
        ("import apex4_probe.planner", "apex4_probe.kernels.compile", False, ["apex4_probe.planner"]),
        ("from apex4_probe import planner", "apex4_probe.kernels.compile", False, ["apex4_probe.planner"]),
        ("from apex4_probe.planner import plan", "apex4_probe.kernels.compile", False, ["apex4_probe.planner"]),
        ("from ..planner import plan", "apex4_probe.kernels.compile", False, ["apex4_probe.planner"]),
        ("from .. import planner", "apex4_probe.kernels.compile", False, ["apex4_probe.planner"]),
        ("from . import planner", "apex4_probe", True, ["apex4_probe.planner"]),
        ("def f():\n    from apex4_probe.planner import plan", "apex4_probe.cli", False, ["apex4_probe.planner"]),
        ("import numpy", "apex4_probe.cli", False, []),
    ],
)
def test_every_form_of_import_is_seen(line: str, module: str, is_package: bool, expected: list[str]) -> None:
    assert list(imports(ast.parse(line), module, is_package, {"apex4_probe.planner"})) == expected
