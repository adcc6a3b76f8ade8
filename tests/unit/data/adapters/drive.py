"""Runs a source without the engine: rows in, samples and images out, in this process."""

from __future__ import annotations

from typing import Any

from radloop.data.source import ROW, ImageRef, Images, Source


def drive(source: Source) -> tuple[list[dict[str, Any]], dict[str, ImageRef]]:
    """Return all samples (or what was left out), with file and row, and the images by key."""
    samples, refs = [], {}
    for unit in source.units():
        images = Images()
        for number, row in enumerate(source.rows(unit)):
            found = list(source.samples(row, images))
            assert found, f"{unit.file} row {unit.first + number} vanished"
            place = {"file": unit.file, "row": unit.first + number if unit.first else 0}
            for sample in found:
                if "id" in sample:
                    sample["id"] = sample["id"].replace(ROW, str(place["row"]))
                samples.append(sample | place)
        refs |= images.refs
    return samples, refs
