"""The verb predict: known devices, a datasheet of one's own, what it assumes, and the examples that ship."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import apex4_probe
from apex4_probe import cli
from apex4_probe.assumptions import assumptions
from apex4_probe.datasheets import datasheets, find
from apex4_probe.deployment import Profile
from apex4_probe.emit import answer
from apex4_probe.errors import ApexError
from apex4_probe.flow import Request, read
from apex4_probe.flow import predict as flow_predict
from apex4_probe.output_folder import slug
from apex4_probe.own_datasheet import parse_datasheet
from apex4_probe.prediction import predict_device
from apex4_probe.profile_file import load_profile, seal, write_profile
from apex4_probe.reports.prediction_terminal import balance_interval_table, print_prediction, times_interval_table

EXAMPLES = Path(__file__).resolve().parents[2] / "reports" / "examples" / "predicted"

OWN = """
My Prototype:
  compute_capability: "8.6"
  sm_count: 84
  boost_clock_mhz: 1740
  int4_tops: {value: 598.7, source: "internal roadmap"}
  int8_tops: 299.3
  fp16_tflops: {value: 149.7, source: a40_datasheet}
  fp32_tflops: 37.4
  memory_gb: 48
  memory_gb_s: 696
  l2_mb: 6
  power_w: 300
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["apex4-probe", *arguments])
        result = CliRunner(env={"COLUMNS": "100"}).invoke(cli.app, list(arguments))
        return result.exit_code, result.stdout, result.stderr

    return run


Call = Callable[..., tuple[int, str, str]]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# the verb


def test_a_device_is_printed_and_nothing_is_written(call: Call, tmp_path: Path) -> None:
    code, out, err = call("predict", "rtx 3090")
    assert (code, err) == (0, "")
    assert (
        out.splitlines()[0]
        == "Nothing was measured: NVIDIA GeForce RTX 3090 predicted from datasheet and balance model."
    )
    assert "Assumed: " in out
    assert files_in(tmp_path) == []


def test_with_out_it_writes_profile_and_report(call: Call, tmp_path: Path) -> None:
    code, out, err = call("predict", "A40", "--out", "here/{device}", "--json", "--tp", "2")
    assert code == 0
    assert err.startswith("Nothing was measured: NVIDIA A40 ")
    (entry,) = json.loads(out)["profiles"]
    assert entry["path"] == "here/a40/profile.yaml"
    written = load_profile(tmp_path / "here" / "a40" / "profile.yaml")
    assert Profile.model_validate(entry["profile"]) == written
    assert (written.origin, written.workload.tensor_parallel) == ("predicted", 2)
    assert written.provenance.command == "apex4-probe predict A40 --out 'here/{device}' --json --tp 2"
    assert "report.html" in files_in(tmp_path / "here" / "a40")
    (printed,) = json.loads(call("predict", "A40", "--json")[1])["profiles"]
    assert printed["path"] is None


def test_predict_and_run_like_give_one_answer(call: Call) -> None:
    assert call("run", "--like", "A40", "--out", "a", "--quiet") == (0, "", "")
    assert call("predict", "A40", "--out", "b", "--quiet") == (0, "", "")
    assert answer(load_profile("a/profile.yaml")) == answer(load_profile("b/profile.yaml"))
    assert answer(seal(apex4_probe.predict("A40"))) == answer(load_profile("b/profile.yaml"))


def test_python_records_its_own_call() -> None:
    profile = apex4_probe.predict("A40", model="llama-2-7b", tp=2)
    assert profile.provenance.command == "apex4_probe.predict('A40', model='llama-2-7b', tp=2)"


def test_list_names_every_device_with_compute_capability_and_aliases(call: Call) -> None:
    devices = json.loads(call("predict", "--list", "--json")[1])["devices"]
    assert [device["name"] for device in devices] == [sheet.name for sheet in datasheets()]
    a100 = next(device for device in devices if device["name"] == "NVIDIA A100-SXM4-80GB")
    assert a100["compute_capability"] == "8.0" and "A100 80GB" in a100["aliases"]
    text = call("predict", "--list")[1]
    assert all(sheet.name in text for sheet in datasheets() if len(sheet.name) < 30)


def test_all_writes_a_profile_a_device_and_leaves_what_would_not_change(call: Call, tmp_path: Path) -> None:
    assert call("predict", "--all", "--out", "all", "--quiet")[0] == 0
    assert files_in(tmp_path / "all") == sorted(f"{slug(sheet.name)}.yaml" for sheet in datasheets())
    before = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    changed = load_profile(tmp_path / "all" / "a40.yaml")
    write_profile(changed.model_copy(update={"notes": ["another answer"]}), tmp_path / "all" / "a40.yaml")
    _, out, _ = call("predict", "--all", "--out", "all")
    assert f"{len(before)} profiles in all, {len(before) - 1} of them there before" in " ".join(out.split())
    after = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    assert [name for name in before if before[name] != after[name]] in ([], ["a40.yaml"])
    assert load_profile(tmp_path / "all" / "a40.yaml").notes == changed.notes


def test_a_prediction_replaces_a_measurement_only_by_force(call: Call, tmp_path: Path) -> None:
    from sample_profile import sample_profile

    kept = write_profile(sample_profile(), tmp_path / "here" / "profile.yaml")
    code, _, err = call("predict", "H100", "--out", "here")
    assert code == 2 and "--force" in err
    assert load_profile(tmp_path / "here" / "profile.yaml") == kept
    assert call("predict", "H100", "--out", "here", "--force", "--quiet")[0] == 0
    assert load_profile(tmp_path / "here" / "profile.yaml").origin == "predicted"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name one device"),
        (["A40", "--all"], "name one device"),
        (["--list", "--all"], "name one device"),
        (["A40", "--quiet"], "answer nowhere"),
        (["no such device"], "predict --list"),
        (["H100x"], "did you mean"),
        (["absent.yaml"], "absent.yaml does not exist"),
        (["A40", "--model", "no-such-model"], "no-such-model"),
        (["A40", "--tp", "0"], "--tp 0"),
    ],
)
def test_bad_input_is_one_sentence(call: Call, tmp_path: Path, arguments: list[str], told: str) -> None:
    code, out, err = call("predict", *arguments)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("apex4-probe: ") and told in line
    assert files_in(tmp_path) == []
    assert "measured" not in out


# a datasheet of one's own


def test_a_file_of_ones_own_predicts_as_the_same_figures_do_in_ours(call: Call, tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_text(OWN)
    assert call("predict", "gpu.yaml", "--out", "own", "--quiet") == (0, "", "")
    own = load_profile(tmp_path / "own" / "profile.yaml")
    ours = seal(apex4_probe.predict("A40"))
    assert own.device.name == "My Prototype"
    assert own.device.model_copy(update={"name": ours.device.name}) == ours.device
    assert [m.value for m in own.measurements] == [m.value for m in ours.measurements]
    assert [layer.times for layer in own.layers] == [layer.times for layer in ours.layers]
    assert own.rho == ours.rho  # the file's figures stand in the datasheet's place
    sources = {m.name: m.source for m in own.measurements}
    assert sources["mma.s4.m16n8k64"] == "internal roadmap"
    assert sources["mma.s8.m16n8k32"] == "given in gpu.yaml"
    assert sources["mma.f16.m16n8k16"] == "NVIDIA A40 datasheet (reproduced)"  # a short name of ours is resolved


def test_the_figures_of_the_file_count_even_under_a_known_name() -> None:
    sheet = parse_datasheet(OWN.replace("My Prototype", "NVIDIA A40").replace("598.7", "299.3"), "gpu.yaml")
    request = Request()
    rho = flow_predict(sheet, read(request), request).rho["int4"].datasheet
    assert rho == pytest.approx(299.3 / 37.4)
    assert find("A40").rho_int4 == pytest.approx(598.7 / 37.4)


@pytest.mark.parametrize("number", ["8.6", '"8.6"'])
def test_a_compute_capability_may_be_written_as_a_number(number: str) -> None:
    assert parse_datasheet(OWN.replace('"8.6"', number), "gpu.yaml").compute_capability == "8.6"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("sm_count: 84", "sm_count: 84.5", "'My Prototype': sm_count: expected a whole number"),
        ("sm_count: 84", "sm_count: 99999", "sm_count: expected a whole number from 1 to 10000"),
        ("sm_count: 84", "sm_count: many", "sm_count: expected a number, found 'many'"),
        ("sm_count: 84", "sm_count: true", "sm_count: expected a number, found True"),
        ("memory_gb_s: 696", "", "memory_gb_s is missing"),
        ("memory_gb_s: 696", "memory_gb_s: -1", "memory_gb_s: -1 is out of range"),
        ("memory_gb_s: 696", "memory_gb_s: 0", "memory_gb_s: 0 is out of range"),
        ("memory_gb: 48", "memory_gb: 0.5", "memory_gb: 0.5 is out of range, expected 1 to"),
        ("memory_gb_s: 696", "memory_gb_s: 1e300", "memory_gb_s: 1e\\+300 is out of range"),
        ("memory_gb_s: 696", "memory_gb_s: .nan", "is not a number"),
        ("memory_gb_s: 696", "memory_gb_s: {source: x}", "memory_gb_s: expected a number, or"),
        ("memory_gb_s: 696", "memory_gb_s: {value: 1, from: x}", "memory_gb_s: expected a number, or"),
        ("memory_gb_s: 696", "memory_gb_s: {value: 1, source: 5}", "memory_gb_s: source: expected text"),
        ("int8_tops", "int8_tflops", "'int8_tflops' is no field of a device: did you mean int8_tops"),
        ("power_w", "zzz", "'zzz' is no field of a device: known are aliases"),
        ('"8.6"', '"8.60"', "compute_capability: expected major.minor"),
        ('"8.6"', "9", "compute_capability: expected major.minor"),
        ('"8.6"', '"6.1"', "compute_capability: .*7.5"),
        ('"8.6"', '"14.0"', "compute_capability: .*not in profiles/architectures.yaml"),
        ('  compute_capability: "8.6"\n', "", "compute_capability is missing"),
        ("power_w: 300", "aliases: one", "aliases: expected a list of names"),
        ("power_w: 300", "note: [a]", "note: expected text"),
        ("My Prototype", "M" * 101, "101 characters, expected 1 to 100"),
        ("My Prototype", '"\\e[31mred"', "cannot be printed"),
        ("My Prototype", '""', "expected 1 to 100"),
        ("power_w: 300", "power_w: 300\nOther: {}", "expected one device, found 2"),
        ("power_w: 300", "power_w: &a 300", "anchors"),
        (OWN, "", "gpu.yaml"),
        (OWN, "name: text", "expected one device, as NAME"),
        (OWN, 'schema_version: "1.0"', "is a deployment profile"),
    ],
)
def test_a_bad_file_names_the_field(old: str, new: str, told: str) -> None:
    assert old in OWN
    with pytest.raises(ApexError, match=told):
        parse_datasheet(OWN.replace(old, new), "gpu.yaml")


def test_two_of_sms_clock_and_fp32_are_enough_and_one_is_not() -> None:
    lines = OWN.splitlines(keepends=True)
    for missing in ("sm_count", "boost_clock_mhz", "fp32_tflops"):
        text = "".join(line for line in lines if missing not in line)
        device, _, _ = predict_device(parse_datasheet(text, "gpu.yaml"))
        assert device.sm_count == pytest.approx(84, rel=0.02)
        assert device.max_sm_clock_mhz == pytest.approx(1740, rel=0.01)
    with pytest.raises(ApexError, match="two of sm_count"):
        parse_datasheet("".join(line for line in lines if "sm_count" not in line and "fp32" not in line), "gpu.yaml")


@pytest.mark.parametrize("value", ["0.001", "1e9"])
def test_figures_at_the_limits_predict_without_overflow(value: str) -> None:
    text = "\n".join(
        f"  {line.split(':')[0].strip()}: {value}" if "tops" in line or "tflops" in line else line
        for line in OWN.splitlines()
    )
    request = Request()
    assert flow_predict(parse_datasheet(text, "gpu.yaml"), read(request), request).origin == "predicted"


# what it assumes, and its intervals


def test_assumptions_come_from_the_records() -> None:
    profile = apex4_probe.predict("A40")
    told = [note for note in profile.notes if note.startswith(("Assumed", "About"))]
    assert told == list(assumptions(find("A40"), profile.measurements, profile.co_issue, profile.balance))
    text = " ".join(told)
    assert "mma.s4.m16n8k64" in told[0] and "NVIDIA A40 datasheet (reproduced)" in told[0]
    named = {m.name for m in profile.measurements if m.value is not None}
    assert all(name in text for name in named)  # every figure is accounted for
    assert "carried over from NVIDIA H100 80GB HBM3" in text or "carried over from NVIDIA H200" in text
    assert len(told) <= 9
    without = assumptions(find("A40"), profile.measurements, [], profile.balance)
    assert any("no overlap of the pipes" in sentence for sentence in without)


def test_listings_without_a_vendor_document_are_called_that() -> None:
    (sentence,) = [note for note in apex4_probe.predict("B200").notes if "listings only" in note]
    assert sentence.endswith("sm_count, l2_mb.")


@pytest.mark.parametrize("device", ["A40", "A100", "H100", "T4", "RTX 5090"])
def test_every_time_and_balance_has_its_interval(device: str) -> None:
    profile = apex4_probe.predict(device)
    times = [time for layer in profile.layers for time in layer.times]
    rows = times_interval_table(profile).rows
    assert len(rows) == len(times) > 0
    for row, time in zip(rows, times, strict=True):
        low, high = (float(part) for part in row.cells[4].split("–"))
        assert (low, high) == (pytest.approx(time.us_low, rel=5e-3), pytest.approx(time.us_high, rel=5e-3))
        assert low <= float(row.cells[3].lstrip("~")) * 1.005 and float(row.cells[3].lstrip("~")) <= high * 1.005
        assert row.cells[3].startswith("~")
    for row, item in zip(balance_interval_table(profile).rows, profile.balance, strict=True):
        low, high = (float(part) for part in row.cells[3].split("–"))
        assert low == pytest.approx(1000 * item.cycles_full_overlap, rel=5e-3)
        assert high == pytest.approx(1000 * item.cycles_no_overlap, rel=5e-3)


def test_a_prediction_of_nothing_prints() -> None:
    from hostile_profile import empty_profile, hostile_profile

    for profile in (empty_profile(), hostile_profile()):
        console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
        print_prediction(profile, console)
        text = console.export_text()
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
        assert max(len(line) for line in text.splitlines()) <= 80


# the examples that ship


def test_the_examples_are_what_the_code_predicts() -> None:
    shipped = {path.name: load_profile(path) for path in EXAMPLES.glob("*.yaml")}
    assert sorted(shipped) == sorted(f"{slug(sheet.name)}.yaml" for sheet in datasheets()), "run make examples"
    request = Request()
    question = read(request)
    for sheet in datasheets():
        predicted = seal(flow_predict(sheet, question, request))
        assert answer(shipped[f"{slug(sheet.name)}.yaml"]) == answer(predicted), f"{sheet.name}: run make examples"


def test_the_compared_example_is_what_the_code_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parents[2])  # the rows name their files as make examples gives them
    measured = sorted(Path("profiles/measured").glob("*/profile.yaml"))
    predicted = sorted(Path("reports/examples/predicted").glob("*.yaml"))
    frame = apex4_probe.compare([*measured, *predicted]).reset_index()
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    shipped = pd.read_csv(EXAMPLES.parent / "compare" / "compare.csv")
    pd.testing.assert_frame_equal(shipped, again, obj="reports/examples/compare: run make examples")
    assert len(shipped) == len(measured) + len(datasheets())
