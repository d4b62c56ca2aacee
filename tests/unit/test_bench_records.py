"""bench.json and bench.csv: what is written is what is read, and what is not ours is refused with its place."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from sample_bench import SHAPES, TOKENS, WAYS, sample_bench

from apex4_probe.bench_records import COLUMNS, Bench, bench_csv, bench_json, load_bench
from apex4_probe.errors import ApexError


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(bench_json(sample_bench()))
    assert load_bench(path) == sample_bench()


def test_the_json_has_a_header_and_records_as_documented() -> None:
    said = json.loads(bench_json(sample_bench()))
    assert list(said) == ["header", "records", "chains", "refused"]
    assert said["header"]["device"]["name"] == sample_bench().header.device.name
    assert said["header"]["command"] == "apex4-probe bench --peers --check"
    documented = {
        "n", "k", "m", "variant", "format", "granularity", "strategy", "tile", "method", "us", "us_quantise", "spread",
        "tops", "gb_per_s", "speedup_fp16", "speedup_fp8", "speedup_int8", "roofline_fraction", "exact",
    }  # fmt: skip
    assert all(documented <= set(record) for record in said["records"])


def test_the_csv_is_the_records() -> None:
    rows = list(csv.DictReader(io.StringIO(bench_csv(sample_bench()))))
    assert len(rows) == len(SHAPES) * len(TOKENS) * len(WAYS)
    assert tuple(rows[0]) == COLUMNS
    peer = next(row for row in rows if row["variant"].startswith("humming"))
    assert (peer["version"], peer["exact"], peer["speedup_fp16"]) == ("0.1.19", "", "2.0")
    assert float(rows[0]["us"]) == 6144 * 4096 / 1e6 + 0.01


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"header": {}}, "header.tool_version: Field required"),
        ({**sample_bench().model_dump(mode="json"), "records": [{"n": 1}]}, r"records\.0\.k: Field required"),
        ({}, "header: Field required"),
    ],
)
def test_what_is_no_bench_is_refused_with_its_place(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"records": [], **change}))
    with pytest.raises(ApexError, match=sentence):
        load_bench(path)


def test_another_major_version_is_refused_and_a_newer_minor_read(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"

    def write(version: str, **more: str) -> None:
        said = sample_bench().model_dump(mode="json")
        said["header"] |= {"schema_version": version, **more}
        path.write_text(json.dumps(said))

    write("2.0")
    with pytest.raises(ApexError, match=r"schema_version is 2\.0, this version reads 1\.0"):
        load_bench(path)
    write("1.7", mood="good")
    assert isinstance(load_bench(path), Bench)
