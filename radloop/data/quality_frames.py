"""The two frames that the suites look at: one row an image, one row a sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pandas as pd

from radloop.data.corpus import Corpus
from radloop.data.imaging import ImageFacts, inspect, map_images

_KEPT = ("id", "group", "split", "task", "question", "answer_type", "source")
_FLAGS = ("without_image", "unknown_image", "leaks", "repeated", "contested", "damaged")
_SAMPLE_COLUMNS = (*_KEPT, "row", "answer", "image", *_FLAGS, "notes")
_SEEN = ("size", "shortest_side", "mode", "frames", "blank", "pixel_hash")
_IMAGE_COLUMNS = ("row", "id", "image", "missing", "error", *_SEEN)
_DAMAGED = "\N{REPLACEMENT CHARACTER}"


def image_facts(corpus: Corpus) -> dict[str, ImageFacts | None]:
    """Decode every image once; None stands for a file that is not there."""
    return dict(map_images(corpus, lambda data: None if data is None else inspect(data)))


def image_frame(corpus: Corpus, facts: dict[str, ImageFacts | None]) -> pd.DataFrame:
    """Return the images suite's frame; what a missing or unreadable image lacks is None."""
    rows = []
    for number, (image_id, name) in enumerate(_names(corpus).items()):
        found = facts[image_id]
        row: dict[str, Any] = {"row": number, "id": image_id, "image": name, "missing": found is None}
        if found and found.error:
            row["error"] = found.error
        elif found and found.width and found.height:
            row |= {
                "size": f"{found.width} x {found.height}",
                "shortest_side": min(found.width, found.height),
                "mode": found.mode,
                "frames": found.frames,
                "blank": found.blank,
                "pixel_hash": found.pixel_hash,
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=[*_IMAGE_COLUMNS])


def sample_frame(corpus: Corpus, facts: dict[str, ImageFacts | None]) -> pd.DataFrame:
    """Return the samples suite's frame, with flags for what shows only across rows."""
    samples = corpus.samples.to_pylist()
    names = _names(corpus)
    leaking = leaking_rows(samples, facts)
    repeats = Counter((*_pair(sample), _answer(sample).lower()) for sample in samples)
    answers = defaultdict(set)
    for sample in samples:
        answers[_pair(sample)].add(_answer(sample).lower())
    rows = []
    for number, sample in enumerate(samples):
        text = sample["question"] + _answer(sample)
        rows.append(
            {column: sample[column] for column in _KEPT}
            | {
                "row": number,
                "answer": _answer(sample),
                "image": ", ".join(names.get(image_id, image_id) for image_id in sample["image_ids"]),
                "without_image": not sample["image_ids"] and sample["task"] != "ehr",
                "unknown_image": any(image_id not in names for image_id in sample["image_ids"]),
                "leaks": number in leaking,
                "repeated": repeats[(*_pair(sample), _answer(sample).lower())] > 1,
                "contested": len(answers[_pair(sample)]) > 1,
                "damaged": _DAMAGED in text,
                "notes": "; ".join(sample["notes"]) or None,
            }
        )
    return pd.DataFrame(rows, columns=[*_SAMPLE_COLUMNS])


def leakage(corpus: Corpus, facts: dict[str, ImageFacts | None]) -> dict[str, int | float]:
    """Count published test samples that lie on a picture of another published split.

    Returns:
        test_samples, leaking_samples, share (0 to 1), and the distinct pictures test_images,
        other_images and shared_images.
    """
    samples = corpus.samples.to_pylist()
    test, other = _pictures(samples, facts)
    num_test = sum(sample["split"] == "test" for sample in samples)
    num_leaking = len(leaking_rows(samples, facts))
    return {
        "test_samples": num_test,
        "leaking_samples": num_leaking,
        "share": num_leaking / num_test if num_test else 0.0,
        "test_images": len(test),
        "other_images": len(other),
        "shared_images": len(test & other),
    }


def leaking_rows(samples: list[dict[str, Any]], facts: dict[str, ImageFacts | None]) -> set[int]:
    """Return the numbers of the test samples on a picture that train or validation uses, too."""
    _, other = _pictures(samples, facts)
    return {
        number
        for number, sample in enumerate(samples)
        if sample["split"] == "test" and not other.isdisjoint(_keys(sample, facts))
    }


def _pictures(
    samples: list[dict[str, Any]], facts: dict[str, ImageFacts | None]
) -> tuple[set[str], set[str]]:
    test: set[str] = set()
    other: set[str] = set()
    for sample in samples:
        if sample["split"]:
            (test if sample["split"] == "test" else other).update(_keys(sample, facts))
    return test, other


def _keys(sample: dict[str, Any], facts: dict[str, ImageFacts | None]) -> set[str]:
    """The sample's pictures by content: the same pixels in two files are one picture."""
    known = ((image_id, facts.get(image_id)) for image_id in sample["image_ids"])
    return {found.pixel_hash or image_id for image_id, found in known if found}


def _pair(sample: dict[str, Any]) -> tuple[str, str, str]:
    return " ".join(sample["image_ids"]), sample["context"], sample["question"].lower()


def _answer(sample: dict[str, Any]) -> str:
    return sample["answers"][0] if sample["answers"] else ""


def _names(corpus: Corpus) -> dict[str, str]:
    return dict(zip(corpus.images["id"].to_pylist(), corpus.images["name"].to_pylist(), strict=True))
