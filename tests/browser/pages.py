"""The pages that a browser looks at: name and builder. Another page is another line in ``PAGES``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from hostile_profile import empty_profile, hostile_profile
from recorded_host import LIMITED, WHOLE, described, link
from rich.console import Console
from sample_profile import predicted_profile

from apex4_probe.compare_job import Wishes, compare_job
from apex4_probe.comparison import compare_profiles, labelled
from apex4_probe.deployment import Profile
from apex4_probe.host_records import HostLink
from apex4_probe.models import load_model
from apex4_probe.predict_job import predict
from apex4_probe.reports.compare_page import comparison_files
from apex4_probe.reports.host_tables import host_section
from apex4_probe.reports.page import report_files
from apex4_probe.shipped import shipped_profiles


def report(profile: Profile) -> bytes:
    return report_files(profile)["report.html"]


def shipped_h100() -> Profile:
    return next(profile for profile in shipped_profiles() if profile.device.name == "NVIDIA H100 80GB HBM3")


def slow_h100() -> Profile:
    """The shipped profile with every rate a fifth lower: the health check has something to show."""
    good = shipped_h100()
    figures = [
        figure if figure.value is None else figure.model_copy(update={"value": 0.8 * figure.value})
        for figure in good.measurements
    ]
    return good.model_copy(update={"measurements": figures, "co_issue": good.co_issue[:90], "checksum": ""})


def every_device() -> bytes:
    """What ``apex4-probe compare --all`` writes: every datasheet and what was measured."""
    with TemporaryDirectory() as folder:
        silent = Console(quiet=True)
        compare_job(Wishes(every=True), folder, figures=silent, remarks=silent)
        return (Path(folder) / "compare.html").read_bytes()


def side_by_side(*profiles: Profile) -> bytes:
    subjects = labelled([(profile, "given") for profile in profiles])
    comparison = compare_profiles(subjects, shipped_h100().workload, load_model("llama-3-8b"))
    return comparison_files(comparison)["compare.html"]


def one_host() -> bytes:
    """What ``run --device all`` writes of four GPUs, one of them slow and one that hung."""
    host, profiles = described(
        WHOLE,
        LIMITED,
        WHOLE,
        WHOLE,
        failed={3: "it hung: no progress for 180 s at 'mma.s8.m16n8k32'; its process was ended"},
        links=[HostLink(first=first, link=link(second)) for first, second in combinations(range(4), 2)],
    )
    subjects = labelled([(profile, "given") for profile in profiles.values()])
    comparison = compare_profiles(subjects, shipped_h100().workload, load_model("llama-3-8b"))
    return comparison_files(comparison, host_section(host, profiles))["compare.html"]


PAGES: dict[str, Callable[[], bytes]] = {
    "report, measured": lambda: report(shipped_h100()),
    "report, falling short": lambda: report(slow_h100()),
    "report, predicted": lambda: report(predicted_profile()),
    "report, kernels counted": lambda: report(predict("A100")),
    "report, hostile": lambda: report(hostile_profile()),
    "report, empty": lambda: report(empty_profile()),
    "compare, every device": every_device,
    "compare, one host": one_host,
    "compare, hostile": lambda: side_by_side(hostile_profile(), slow_h100(), shipped_h100()),
}
