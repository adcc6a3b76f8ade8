"""Measures ingest: side by side with `datasets` and Pillow, with growing data, and run again.

python -m benchmarks.ingest [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import _sources
from benchmarks._measure import Measured, measure
from benchmarks._sources import SAMPLES_PER_IMAGE, Picture
from benchmarks._tables import LONGEST, NEW, WORKERS, Row, to_text

OURS = "radloop"
WAYS = {
    "rows": "datasets.map over the rows",
    "distinct": "datasets.map over distinct images",
    "distinct, checks": "  the same, with radloop's further checks",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sources: Name to number of images and samples an image; the name is a writer of `_sources`.
        repetitions: Of each way to prepare them.
        table_rows: Of the growing table.
        again: Which of these is ingested again.
    """

    sources: dict[str, tuple[int, int]]
    repetitions: int
    table_rows: tuple[int, ...]
    again: int


FULL = Plan(
    {"vqa_rad": (120, 7), "slake": (30, 22), "roco": (300, 1), "hub": (80, 7)},
    3,
    (1_000, 10_000, 100_000, 1_000_000),
    100_000,
)
QUICK = Plan({"vqa_rad": (12, 7), "roco": (12, 1)}, 1, (1_000, 5_000), 5_000)


def run(plan: Plan, folder: Path) -> dict[str, list[Row]]:
    """Measure all, in an empty folder.

    Returns:
        Table name to rows; the fields of a row are the columns of the printed table, and the raw figures.
    """
    most = max(images for images, _ in plan.sources.values())
    drawn = _sources.pictures(most)
    rows: list[Row] = []
    for name, (images, per_image) in plan.sources.items():
        rows += _side_by_side(name, drawn[:images], per_image, plan.repetitions, folder / name)
        shutil.rmtree(folder / name)
    growth, again = _growing(plan, folder)
    return {"side_by_side": rows, "growth": growth, "again": again}


def _side_by_side(
    name: str, drawn: Sequence[Picture], per_image: int, repetitions: int, folder: Path
) -> list[Row]:
    write: Callable[[Path, Sequence[Picture], int], None] = getattr(_sources, name)
    write(folder / "source", drawn, per_image)
    adapter = "vqa_rad" if name == "hub" else name
    told = {
        "adapter": adapter,
        "path": str(folder / "source"),
        "workers": WORKERS,
        "longest": LONGEST,
    }
    runs: dict[str, list[Measured]] = {way: [] for way in (OURS, *WAYS)}
    for repetition in range(repetitions):
        # In turn forwards and backwards, so that a machine that slows down slows all of them.
        for way in list(runs)[:: -1 if repetition % 2 else 1]:
            home = folder / "home"
            (home / "out").mkdir(parents=True)
            ours = way == OURS
            more = {"out": str(home / "out"), "pooled": False} if ours else {"way": way}
            runs[way].append(measure(f"benchmarks._{'ours' if ours else 'theirs'}", told | more, home))
            shutil.rmtree(home)
    _require_same(name, runs)
    return [
        {"source": name, "way": WAYS.get(way, way)} | _medians(found, runs[OURS])
        for way, found in runs.items()
    ]


def _require_same(name: str, runs: dict[str, list[Measured]]) -> None:
    results = {
        (run.values["samples"], run.values["images"], run.values["pixels"])
        for found in runs.values()
        for run in found
    }
    if len(results) != 1:
        raise RuntimeError(f"{name}: the ways do not give the same samples, images and pixels: {results}")


def _medians(found: Sequence[Measured], ours: Sequence[Measured]) -> Row:
    def median(runs: Sequence[Measured], figure: Callable[[Measured], float]) -> float:
        return statistics.median(map(figure, runs))

    seconds, peak, rss = (median(found, figure) for figure in (_seconds, _peak, _rss))
    values = found[0].values
    return {
        "images": values["images"],
        "samples": values["samples"],
        "seconds": seconds,
        "images_per_s": values["images"] / seconds,
        "samples_per_s": values["samples"] / seconds,
        "peak_mb": peak,
        "rss_mb": rss,
        "time": seconds / median(ours, _seconds),
        "memory": peak / median(ours, _peak),
        "each": [run.values | {"peak_mb": run.peak_mb, "rss_mb": run.peak_rss_mb} for run in found],
    }


def _seconds(run: Measured) -> float:
    return float(run.values["seconds"])


def _peak(run: Measured) -> float:
    return run.peak_mb


def _rss(run: Measured) -> float:
    return run.peak_rss_mb


def _growing(plan: Plan, folder: Path) -> tuple[list[Row], list[Row]]:
    growth: list[Row] = []
    again: list[Row] = []
    for num_rows in plan.table_rows:
        place = folder / f"table-{num_rows}"
        _sources.table(place, num_rows)
        found = _ingest(place)
        row = {"rows": num_rows, "images": found.values["images"], "seconds": _seconds(found)}
        row |= {"samples_per_s": num_rows / _seconds(found), "peak_mb": found.peak_mb}
        row |= {"rss_mb": found.peak_rss_mb, "processes": found.processes}
        growth.append(row | {"times": found.peak_mb / (growth[0] if growth else row)["peak_mb"]})
        if num_rows == plan.again:
            again = list(_again(place, found))
        shutil.rmtree(place)
    return growth, again


def _ingest(place: Path) -> Measured:
    told = {"adapter": "table", "path": str(place / "questions.jsonl"), "workers": WORKERS}
    return measure("benchmarks._ours", told | {"longest": 0, "out": "", "pooled": True}, place / "home")


def _again(place: Path, first: Measured) -> Iterator[Row]:
    """Ingest a table again that has been ingested in `place` before."""
    yield _touched("first", first)
    yield _touched("unchanged", _ingest(place))
    table = place / "questions.jsonl"
    lines = table.read_text().splitlines(keepends=True)
    count = round(NEW * len(lines))
    lines += _new_rows(place, len(lines), count)
    table.write_text("".join(lines))
    yield _touched(f"{NEW:.0%} appended", _ingest(place))
    order = random.Random(0)  # noqa: S311
    for line in _new_rows(place, len(lines), count):
        lines.insert(order.randrange(len(lines)), line)
    table.write_text("".join(lines))
    yield _touched(f"{NEW:.0%} at random places", _ingest(place))


def _new_rows(place: Path, first: int, count: int) -> list[str]:
    start = -(-first // SAMPLES_PER_IMAGE) * SAMPLES_PER_IMAGE
    _sources.tiny_images(place, start, count)
    return list(_sources.table_rows(start, count))


def _touched(what: str, found: Measured) -> Row:
    names = ("seconds", "rows", "new_rows", "images", "new_images")
    return {"run": what} | {name: found.values[name] for name in names} | {"peak_mb": found.peak_mb}


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    packages = ("datasets", "pillow", "pyarrow", "numpy")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the figures if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    facts = machine()
    # All that is started inherits it: more cores would not make these figures comparable.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        tables = run(QUICK if options.quick else FULL, Path(folder))
    print(to_text(tables, facts))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
