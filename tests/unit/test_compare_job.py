"""What the verb compare accepts, refuses and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sample_profile import predicted_profile, sample_profile

from apex4_probe.compare_job import Wishes, _compared
from apex4_probe.deployment import Profile
from apex4_probe.errors import ApexError
from apex4_probe.profile_file import profile_text


def written(folder: Path, profile: Profile) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.yaml").write_text(profile_text(profile), encoding="utf-8")
    return str(folder)


def verb(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from apex4_probe.cli import main; main()", "compare", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def labels(*names: str, **wishes: object) -> list[str]:
    comparison = _compared(Wishes(names, **wishes), [])  # type: ignore[arg-type]
    return [entry.subject.label for entry in comparison.entries]


def test_files_folders_and_names_mix(tmp_path: Path) -> None:
    one = written(tmp_path / "one", predicted_profile())
    assert labels(one, f"{one}/profile.yaml", "H100", "RTX 3090") == [
        "H100 80GB HBM3, predicted",
        "H100 80GB HBM3, measured",
        "GeForce RTX 3090",
    ]


def test_a_shipped_device_is_the_measured_one_and_another_its_datasheet() -> None:
    comparison = _compared(Wishes(("H200", "A40")), [])
    assert [(e.subject.where, e.subject.profile.origin) for e in comparison.entries] == [
        ("shipped", "measured"),
        ("datasheet", "predicted"),
    ]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ((), "name two profiles"),
        (("one",), "one profile alone has nothing to be compared with: name a second one"),
        (("one",), "or look at it with apex4-probe show one/profile.yaml"),
        (("A40",), 'apex4-probe predict "NVIDIA A40"'),
        (("one", "one"), "was given twice"),
        (("A40", "A40"), "was given twice"),
        (("empty", "one"), "empty is a folder without profile.yaml"),
        (("missing/profile.yaml", "one"), "does not exist"),
        (("missing.yaml", "one"), "does not exist"),
        (("major", "one"), "schema_version is '2.0', and this tool reads 1.x"),
        (("GTX 260", "one"), "No datasheet figures"),
        (("\0", "one"), "neither a readable file nor a known device"),
        (("x" * 5000, "one"), "x'… is neither a readable file nor a known device"),
        (("x" * 300, "one"), "No datasheet figures"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_shown_a_sentence_says_why(
    names: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "one", sample_profile())
    written(tmp_path / "major", sample_profile(schema_version="2.0"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ApexError) as caught:
        _compared(Wishes(names), [])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_left_out_and_named_where_two_others_remain(tmp_path: Path) -> None:
    major = written(tmp_path / "major", sample_profile(schema_version="2.0"))
    comparison = _compared(Wishes((major, "A40", "A100", "A40")), [])
    assert len(comparison.entries) == 2
    told = " ".join(comparison.remarks)
    assert "Left out: " in told and "schema_version" in told and "A40 was given twice" in told


@pytest.mark.parametrize("price", ["A40", "A40=", "=1", "A40=-1", "A40=nan", "A40=inf", "A40=cheap"])
def test_prices_that_are_none(price: str) -> None:
    with pytest.raises(ApexError, match="expected NAME=USD_PER_HOUR"):
        _compared(Wishes(("A40", "A100"), prices=(price,)), [])


def test_a_price_for_a_gpu_that_is_not_compared() -> None:
    with pytest.raises(ApexError, match="none of the compared GPUs, which are A40, A100-SXM4-80GB"):
        _compared(Wishes(("A40", "A100"), prices=("RTX 3090=1",)), [])


def test_the_question_is_the_profiles_own_unless_asked_otherwise(tmp_path: Path) -> None:
    workload = sample_profile().workload.model_copy(update={"model": "qwen2.5-7b"})
    one = written(tmp_path / "one", sample_profile(workload=workload))
    two = written(tmp_path / "two", predicted_profile(workload=workload))
    assert _compared(Wishes((one, two)), []).workload.model == "qwen2.5-7b"
    assert _compared(Wishes((one, two)), []).workload.points == workload.points
    assert _compared(Wishes((one, two), model="llama-2-7b"), []).workload.model == "llama-2-7b"
    stranger = written(
        tmp_path / "three", sample_profile(workload=workload.model_copy(update={"model": "/etc/passwd"}))
    )
    assert _compared(Wishes((one, stranger)), []).workload.model == "llama-3-8b"


def test_the_verb_writes_everything_and_exits_with_0(tmp_path: Path) -> None:
    result = verb("A40", "A100", "--out", "out", "--price", "A40=0.5", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "compare.html",
        "compare.csv",
        "compare.json",
        "rho.png",
    }
    assert "A100-SXM4-80GB" in result.stdout.replace("\n", "") and "Cost" in result.stdout
    assert "compare A40 A100 --out out" in (tmp_path / "out" / "compare.html").read_text()


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    result = verb("A40", "A100", "--out", "out", "--json", cwd=tmp_path)
    data = json.loads(result.stdout)
    assert [row["label"] for row in data["profiles"]] == ["A40", "A100-SXM4-80GB"]
    assert data == json.loads((tmp_path / "out" / "compare.json").read_text())


def test_refusals_exit_with_2_in_one_line_and_write_nothing(tmp_path: Path) -> None:
    for arguments in ((), ("A40",), ("nothing-here.yaml", "A40"), ("A40", "A100", "--price", "x")):
        result = verb(*arguments, "--out", "out", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_compare_is_a_function_of_the_package() -> None:
    code = (
        "import apex4_probe as apex, sys; assert 'pandas' not in sys.modules; "
        "table = apex.compare(['A40', 'A100']); print(table.shape[0], callable(apex.compare))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout.split() == ["2", "True"], result.stderr
