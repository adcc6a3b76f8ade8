"""The printed form of what was measured, and what is the same in all measurements."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

WORKERS = 2
LONGEST = 336  # pixels of a side; what CLIP's larger towers take
NEW = 0.01  # of the rows
_WIDTH = 110
Row = dict[str, Any]
_SIDE_BY_SIDE = f"""
    Side by side, {WORKERS} processes on {WORKERS} cores, medians. Equal work: texts stripped and in lower
    case; each image decoded to 8-bit RGB; SHA-256 of its file and a hash of its pixels known; an RGB copy
    of {LONGEST} pixels stored losslessly. radloop also looks for burnt-in text and takes a perceptual hash
    for near-duplicates: so does the last line of each block, which is the closest comparison. "time x" and
    "memory x" are in terms of radloop's: above 1 is in its favour. Seconds are without imports of the main
    process, with those of workers. Peak MB is what all processes together hold and the system cannot drop
    (anonymous and shared memory, pages in common counted once). RSS counts those several times, and
    mapped files.
"""
_GROWTH = """
    Ingest alone, of a table with 7 samples an image, each image a small file of its own, in worker
    processes from the start (small data would do without). Memory is flat if it stays the same.
"""
_AGAIN = f"""
    The same table again: unchanged; with {NEW:.0%} more rows and their images at its end; with as many at
    random places. Only rows and images that are new or have changed are read, wherever they stand.
"""


def to_text(tables: dict[str, list[Row]], machine: dict[str, Any]) -> str:
    """Return the printed form of what `run` and `machine` gave."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    about = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {versions}"
    about = textwrap.fill(about, _WIDTH)
    if machine["load_before"] > 0.5:
        about += f"\nthe machine was shared: load {machine['load_before']:.1f} before the first measurement"
    blocks = [about, textwrap.dedent(_SIDE_BY_SIDE).strip()]
    columns = {"seconds": ".1f", "images_per_s": ",.0f", "samples_per_s": ",.0f", "peak_mb": ",.0f"}
    columns |= {"rss_mb": ",.0f", "time": ".2f", "memory": ".2f"}
    for source in dict.fromkeys(row["source"] for row in tables["side_by_side"]):
        rows = [row for row in tables["side_by_side"] if row["source"] == source]
        title = f"{source}: {rows[0]['images']:,} images, {rows[0]['samples']:,} samples"
        blocks.append(_aligned(rows, title, "way", columns))
    columns = {"images": ",", "seconds": ".1f", "samples_per_s": ",.0f", "peak_mb": ",.0f", "rss_mb": ",.0f"}
    growth = [row | {"samples": f"{row['rows']:,}"} for row in tables["growth"]]
    blocks.append(textwrap.dedent(_GROWTH).strip())
    blocks.append(_aligned(growth, "samples", "samples", columns | {"processes": "", "times": ".2f"}))
    blocks.append(_verdict(growth))
    counts = dict.fromkeys(("rows", "new_rows", "images", "new_images"), ",")
    columns = {"seconds": ".1f"} | counts | {"peak_mb": ",.0f"}
    blocks.append(textwrap.dedent(_AGAIN).strip())
    blocks.append(_aligned(tables["again"], "run", "run", columns))
    return "\n\n".join(blocks)


def _verdict(growth: Sequence[Row]) -> str:
    last = growth[-1]
    ratios = [f"{last['peak_mb'] / row['peak_mb']:.2f} x that at {row['samples']}" for row in growth[:-1]]
    return f"The peak at {last['samples']} samples is {', '.join(ratios) or 'the only one'}."


_HEADERS = {
    "seconds": "s",
    "images_per_s": "images/s",
    "samples_per_s": "samples/s",
    "peak_mb": "peak MB",
    "rss_mb": "RSS MB",
    "time": "time x",
    "memory": "memory x",
    "times": "peak x first",
    "new_rows": "rows read",
    "new_images": "images read",
}


def _aligned(rows: Sequence[Row], title: str, name: str, columns: dict[str, str]) -> str:
    first = max(len(title), *(len(row[name]) for row in rows))
    lines = [[title, *(_HEADERS.get(column, column) for column in columns)]]
    lines += [[row[name], *(format(row[column], form) for column, form in columns.items())] for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(1, len(columns) + 1)]
    return "\n".join(
        line[0].ljust(first) + "".join(map(str.rjust, line[1:], (width + 2 for width in widths)))
        for line in lines
    )
