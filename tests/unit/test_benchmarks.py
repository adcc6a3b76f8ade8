import json
import tempfile
from pathlib import Path

import pytest

from benchmarks import _measure, _sources, ingest
from benchmarks._measure import Measured, measure
from benchmarks._tables import _verdict, to_text
from radloop.config import DataConfig
from radloop.data.ingest import ingest as read

PLAN = ingest.Plan({"vqa_rad": (4, 2)}, 1, (700,), 700)


def test_all_that_is_planned_is_in_the_tables() -> None:
    with tempfile.TemporaryDirectory() as folder:  # short: `datasets` makes a socket in it
        tables = ingest.run(PLAN, Path(folder))
    assert [row["way"].strip() for row in tables["side_by_side"]] == [
        "radloop",
        "datasets.map over the rows",
        "datasets.map over distinct images",
        "the same, with radloop's further checks",
    ]
    assert {(row["images"], row["samples"]) for row in tables["side_by_side"]} == {(4, 8)}
    assert [(row["rows"], row["images"]) for row in tables["growth"]] == [(700, 100)]
    touched = {row["run"]: (row["new_rows"], row["new_images"]) for row in tables["again"]}
    assert touched["first"] == (700, 100)
    assert touched["unchanged"] == (0, 0)
    assert touched["1% appended"][1] == touched["1% at random places"][1] == 1
    text = to_text(tables, ingest.machine())
    assert max(map(len, text.splitlines())) <= 110
    assert json.loads(json.dumps(tables)) == tables
    for row in tables["side_by_side"]:
        assert f"\n{row['way']} " in text


@pytest.mark.parametrize("name", ingest.FULL.sources)
def test_both_sides_read_the_same_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from benchmarks import _theirs

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    images, per_image = 3, min(2, ingest.FULL.sources[name][1])
    getattr(_sources, name)(tmp_path / "source", _sources.pictures(images), per_image)
    adapter = "vqa_rad" if name == "hub" else name
    rows = _theirs.load(adapter, tmp_path / "source")
    ours = read(DataConfig.model_validate({"adapter": adapter, "path": str(tmp_path / "source")}))
    assert ours.samples["answers"].to_pylist() == [[text.strip()] for text in rows["answer"]]
    assert ours.samples.num_rows == images * per_image
    assert ours.images.num_rows == images


def test_the_verdict_compares_the_largest_table_with_each_smaller_one() -> None:
    growth = [{"samples": "10", "peak_mb": 50.0}, {"samples": "20", "peak_mb": 80.0}]
    growth.append({"samples": "30", "peak_mb": 100.0})
    assert _verdict(growth) == "The peak at 30 samples is 2.00 x that at 10, 1.25 x that at 20."


def test_ways_that_give_other_results_are_not_compared() -> None:
    values = {"samples": 8, "images": 4, "pixels": "aa", "seconds": 1.0}
    runs = {way: [Measured(values | {"pixels": way}, 1.0, 1.0, 1)] for way in ("radloop", "rows")}
    with pytest.raises(RuntimeError, match="vqa_rad: the ways do not give the same"):
        ingest._require_same("vqa_rad", runs)


def test_memory_of_children_counts_and_shared_pages_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holder.py").write_text(
        "import os, time\n"
        "shared = b'x' * 60_000_000\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        own = b'y' * 40_000_000; time.sleep(0.6); os._exit(0)\n"
        "os.wait(); os.wait()\n"
        "print('{\"seconds\": 1}')\n"
    )
    monkeypatch.setattr(_measure, "ROOT", tmp_path)
    found = measure("holder", {}, tmp_path / "home")
    assert found.values == {"seconds": 1}
    assert found.processes == 3
    assert 140 <= found.peak_mb < 175
    assert found.peak_rss_mb > 250


def test_a_process_that_fails_shows_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('no such picture')")
    monkeypatch.setattr(_measure, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="no such picture"):
        measure("broken", {}, tmp_path / "home")
