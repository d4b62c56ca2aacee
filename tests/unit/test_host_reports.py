"""The table, the sentences and the page of a host, for every kind of host: each number the records', on one screen."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import combinations

import pytest
from hostile_profile import ATTACK
from recorded_host import (
    H200,
    LIMITED,
    LOST,
    MIG_BOARD,
    SLICE,
    WHOLE,
    Recorded,
    described,
    figure,
    link,
    profile_of,
    unusable,
)
from rich.console import Console
from sample_profile import sample_profile
from test_report_page import Reader

from apex4_probe.deployment import Profile
from apex4_probe.flow import Request
from apex4_probe.flow import read as read_request
from apex4_probe.host_job import _comparison
from apex4_probe.host_records import Host, HostLink, TogetherFigure
from apex4_probe.reports.compare_page import comparison_files
from apex4_probe.reports.host_tables import headline, host_section, host_table, odd_sentence, sentences, together_table
from apex4_probe.reports.host_terminal import print_host
from apex4_probe.reports.link_tables import link_facts_table, link_table, profile_links_table
from apex4_probe.reports.page import report_files
from apex4_probe.reports.terminal import print_profile

SCREEN = 50  # lines of a terminal that a fleet owner has open


def all_pairs(count: int, rate: float = 370.0) -> list[HostLink]:
    return [HostLink(first=first, link=link(second, rate)) for first, second in combinations(range(count), 2)]


def printed(host: Host, profiles: dict[int, Profile], width: int = 80, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    print_host(host, profiles, Console(file=stream, width=width))
    stream.seek(0)
    return stream.read()


def cells(host: Host, profiles: dict[int, Profile]) -> list[tuple[str, ...]]:
    return [row.cells for row in host_table(host, profiles).rows if not row.remark]


def test_two_equal_gpus() -> None:
    host, profiles = described(WHOLE, WHOLE, links=all_pairs(2))
    assert headline(host) == "2 GPUs measured; none differs from another of its model by more than the spread."
    assert host_table(host, profiles).title == "2 x NVIDIA H100 80GB HBM3"
    row = ("1686", "762", "2945", "55.0", "1410", "698", "48", "power cap", "W4A8 g128i", "–")
    assert cells(host, profiles) == [("0", *row), ("1", *row)]
    assert sentences(host) == []


def test_eight_gpus_fit_a_screen_and_the_odd_one_is_named_with_its_cause() -> None:
    host, profiles = described(*[LIMITED if index == 5 else WHOLE for index in range(8)], links=all_pairs(8))
    assert headline(host) == "8 GPUs measured; GPU 5 differs from the others of its model."
    marks = [row[-1] for row in cells(host, profiles)]
    assert marks == ["–"] * 5 + ["0.70×"] + ["–"] * 2
    (told,) = sentences(host)
    assert told.startswith("GPU 5 differs from GPU 0 in ")
    assert "worst wgmma.s8.m64n256k32.rs random burst at 0.70 times (1354 to 1934 TOPS; noise explains 6.0%)" in told
    assert "power limit: 350 W here, 700 W on GPU 0" in told
    assert told.count("power limit") == 1  # a cause is not told again as a difference
    text = printed(host, profiles)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= SCREEN
    assert len(link_table(host).rows) == 8


def test_of_each_kind_of_figure_the_worst_is_named() -> None:
    host, _ = described(WHOLE, Recorded(factor=0.7, generation=3), WHOLE)
    (told,) = sentences(host)
    kinds = re.findall(r"(\d+) of ([a-zA-Z][\w ]+), worst ([\w.]+)", told)
    assert kinds[0] == ("1", "host link", "host.to_device")  # at 0.25 times the worst of all
    assert {kind for _, kind, _ in kinds} == {"host link", "Tensor Core", "CUDA Core", "shared memory"}
    assert sum(int(count) for count, _, _ in kinds) == len(host.odd[0].figures)


def test_within_what_two_cards_differ_by_it_is_said() -> None:
    host, _ = described(WHOLE, Recorded(factor=0.93), WHOLE)
    assert "That is more than the spread, and no more than two cards of one name differ by" in sentences(host)[0]
    host, _ = described(WHOLE, Recorded(factor=0.8), WHOLE)
    assert "two cards of one name" not in sentences(host)[0]


def test_a_difference_that_nothing_explains_sends_nobody_after_a_ghost() -> None:
    slow = profile_of(WHOLE)
    figures = [
        item.model_copy(update={"value": 0.5 * (item.value or 0.0)}) if item.name == "memory.read" else item
        for item in slow.measurements
    ]
    from apex4_probe.host_findings import odd_ones

    (odd,) = odd_ones({0: profile_of(WHOLE), 1: slow.model_copy(update={"measurements": figures})})
    assert odd.causes == []
    assert "Nothing that the profiles record explains it" in odd_sentence(odd)


def test_set_up_differently_and_as_fast() -> None:
    slower = WHOLE.device.model_copy(update={"power_limit_w": 650.0})
    host, profiles = described(WHOLE, Recorded(slower))
    assert sentences(host) == [
        "GPU 1 differs from GPU 0 in how it is set up, and in no figure: power limit: 650 W here, 700 W on GPU 0."
    ]
    assert cells(host, profiles)[1][-1] == "set-up"


def test_mixed_models_have_a_column_for_theirs() -> None:
    host, profiles = described(WHOLE, Recorded(H200), Recorded(H200, factor=0.5))
    assert host_table(host, profiles).title == "GPUs of this host"
    assert [row[1] for row in cells(host, profiles)] == ["H100 80GB HBM3", "H200", "H200"]
    assert [item.index for item in host.odd] == [2]
    host, _ = described(WHOLE, Recorded(H200))
    assert headline(host) == ("2 GPUs measured; no two are of one model, so nothing here tells whether one is slow.")


def test_a_slice_and_a_sliced_board() -> None:
    host, profiles = described(WHOLE, Recorded(SLICE), left_out=(MIG_BOARD,))
    assert [row[1] for row in cells(host, profiles)] == ["H100 80GB HBM3", "H100 80GB HBM3, MIG 3g.40gb"]
    assert headline(host).startswith("2 of 3 GPUs measured; no two are of one model")
    remarks = [(row.cells[0], row.remark) for row in host_table(host, profiles).rows if row.remark]
    assert remarks == [("smi 2", f"not measured: {MIG_BOARD.reason}")]
    assert host.failures == []


def test_one_that_failed_half_way_and_one_that_was_lost() -> None:
    why = "it hung: no progress for 180 s at 'mma.s8.m16n8k32'; its process was ended"
    host, profiles = described(WHOLE, WHOLE, WHOLE, failed={2: why}, left_out=(LOST,))
    assert headline(host).startswith("2 of 4 GPUs measured; GPU 2 and GPU 1 failed; none differs")
    assert [gpu.reason for gpu in host.failures] == [why, LOST.reason]
    text = " ".join(printed(host, profiles).split())
    assert f"2 – not measured: {why}" in text


def test_none_measured_is_a_table_of_reasons() -> None:
    host, profiles = described(WHOLE, WHOLE, failed={0: "first", 1: "second"})
    assert headline(host) == "0 of 2 GPUs measured; GPU 0 and GPU 1 failed."
    text = printed(host, profiles)
    assert "0 – not measured: first" in text and "1 – not measured: second" in text


def pairs(ratio: float) -> list[TogetherFigure]:
    name = "wgmma.f16.m64n256k16.ss"
    return [
        TogetherFigure(role="fp16", alone=figure(name, "sustained", 1.0), together=figure(name, "sustained", ratio))
    ]


def test_together_shows_ratio_clock_power_and_throttling() -> None:
    host, profiles = described(WHOLE, WHOLE, together={0: pairs(0.9), 1: pairs(0.85)})
    table = together_table(host)
    assert [row.cells for row in table.rows] == [
        ("FP16 MMA",),
        ("0", "762 TFLOPS", "685", "0.90×", "1410 → 1269", "698 → 698", "48 → 48", "power cap"),
        ("1", "762 TFLOPS", "647", "0.85×", "1410 → 1198", "698 → 698", "48 → 48", "power cap"),
    ]
    assert "4 s each" in table.caption
    assert "0.85x" in printed(host, profiles, encoding="ascii") and "1410 -> 1198" in printed(
        host, profiles, encoding="ascii"
    )


def test_a_load_without_a_figure_says_why() -> None:
    lost = figure("wgmma.f16.m64n256k16.ss", "sustained", 1.0).model_copy(
        update={"value": None, "unsupported": "reading rejected: above the peak"}
    )
    host, _ = described(WHOLE, together={0: [pairs(1.0)[0].model_copy(update={"together": lost})]})
    assert [row.remark for row in together_table(host).rows if row.remark] == ["reading rejected: above the peak"]


def test_the_matrix_of_copies_has_both_directions_and_every_way_once() -> None:
    far = link(2, 21.0, from_peer_gb_per_s=19.5, path="between_cpus", nvlinks=0, peer_access=False)
    host, _ = described(WHOLE, WHOLE, WHOLE, links=[*all_pairs(2), HostLink(first=0, link=far)])
    table = link_table(host)
    assert [row.cells for row in table.rows] == [
        ("GPU 0", "–", "370", "21.0"),
        ("GPU 1", "370", "–", "–"),
        ("GPU 2", "19.5", "–", "–"),
    ]
    assert table.caption.startswith("0–1 by NVLink x18; 0–2 by the link between CPUs, staged in host memory.")
    (_, row) = link_facts_table(host).rows
    assert row.cells == (
        "GPU 0 – GPU 2", "the link between CPUs", "through host memory", "21.0", "19.5", "40.9", "2.00", "0.2%",
        "measured",
    )  # fmt: skip


def test_a_link_that_cannot_be_used_is_a_finding() -> None:
    host, profiles = described(WHOLE, WHOLE, links=[HostLink(first=0, link=unusable(1))])
    assert sentences(host) == ["The link of GPU 0 and GPU 1: copied data arrive changed."]
    assert "copied data arrive changed" in printed(host, profiles)
    assert host.all_reduce is None


def test_the_all_reduce_stands_below_the_links() -> None:
    host, profiles = described(WHOLE, WHOLE, links=all_pairs(2))
    text = " ".join(printed(host, profiles).split())
    assert text.index("All pairs by NVLink x18") < text.index("All-reduce, estimated: over 2 GPUs")


def page(host: Host, profiles: dict[int, Profile]) -> str:
    request = Request(device="all", command="apex4-probe run --device all")
    comparison = _comparison(profiles, read_request(request), request)
    assert comparison is not None
    return comparison_files(comparison, host_section(host, profiles))["compare.html"].decode()


def rows_of(text: str) -> Sequence[Sequence[str]]:
    reader = Reader()
    reader.feed(re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    return reader.rows


def test_the_page_begins_with_the_host_and_compares_its_gpus() -> None:
    host, profiles = described(WHOLE, LIMITED, WHOLE, failed={2: "it hung"}, links=all_pairs(3))
    text = page(host, profiles)
    assert text.index("<h2>This host</h2>") < text.index("<h2>The answers</h2>")
    rows = [list(row) for row in rows_of(text)]
    assert ["2", "not measured: it hung"] in rows
    assert any(row[:2] == ["0", "1686"] and row[-1] == "–" for row in rows)
    assert any(row[:2] == ["1", "1181"] and row[-1] == "0.70×" for row in rows)
    assert any(row[0] == "GPU 0 (H100 80GB HBM3)" for row in rows)
    assert "GPU 1 differs from GPU 0" in text and "All-reduce, estimated" in text
    assert "Two profiles of one device" not in text  # the odd one says it in less
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_page_of_a_single_survivor() -> None:
    host, profiles = described(WHOLE, WHOLE, failed={1: "its process was killed by SIGKILL at 'compiling probes'"})
    assert "killed by SIGKILL" in page(host, profiles)


@pytest.mark.parametrize("width", [80, 120])
def test_a_profile_shows_its_links(width: int) -> None:
    profile = sample_profile(links=[link(1), unusable(2)])
    stream = io.StringIO()
    print_profile(profile, Console(file=stream, width=width))
    text = " ".join(stream.getvalue().split())
    assert "Links to the other GPUs of its host" in text and "copied data arrive changed" in text
    assert [row.cells[0] for row in profile_links_table(profile).rows] == [
        "GPU 1 (H100 80GB HBM3)",
        "GPU 2 (H100 80GB HBM3)",
    ]
    assert profile_links_table(sample_profile()).rows == ()


def test_strangers_strings_are_text() -> None:
    hostile = Recorded(WHOLE.device.model_copy(update={"name": ATTACK}))
    host, profiles = described(hostile, hostile, WHOLE, failed={2: ATTACK}, links=all_pairs(2))
    text = page(host, profiles)
    assert "<script>alert" not in text
    assert "\x1b" not in printed(host, profiles)
    report = report_files(sample_profile(links=[link(1, peer_name=ATTACK)]))["report.html"].decode()
    assert "<script>alert" not in report
