"""From accepted samples to model input: RGB images, prompts, and splits that share no picture."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from radloop.config import PreprocessConfig
from radloop.data.corpus import Corpus
from radloop.data.imaging import map_images, pixel_hash, resize, to_png, to_rgb
from radloop.data.prepared import PREPARED_IMAGES, PREPARED_SAMPLES, PreparedData
from radloop.data.quality_report import ValidationReport
from radloop.data.splits import SPLITS, assign, merge
from radloop.errors import DataError


def preprocess(corpus: Corpus, report: ValidationReport, config: PreprocessConfig, seed: int) -> PreparedData:
    """Decode and resize the images of the accepted samples, and give each sample prompt and split.

    Args:
        corpus: What `ingest` returned.
        report: What `validate` returned for it; quarantined samples and their images stay out.
        config: Size, split and prompt.
        seed: Of the split.

    Raises:
        DataError: Train or test would be empty.
    """
    quarantined = report.quarantined_ids
    samples = [sample for sample in corpus.samples.to_pylist() if sample["id"] not in quarantined]
    images, pictures = _prepared_images(corpus, samples, config.image_size)
    groups = merge((sample["group"], {pictures[i] for i in sample["image_ids"]}) for sample in samples)
    for sample in samples:
        sample["group"] = groups[sample["group"]]
        if config.lowercase_answers:
            sample["answers"] = [answer.lower() for answer in sample["answers"]]
        sample["prompt"] = config.prompt.replace("{question}", sample["question"])
    # The order of files and folders must not show in the order of training.
    samples.sort(key=lambda sample: (sample["id"], sample["question"]))
    images = images.sort_by("id")
    _split(samples, config, seed)
    _refuse_empty(samples, config, report)
    return PreparedData(images, pa.Table.from_pylist(samples, schema=PREPARED_SAMPLES), corpus.fingerprint)


def _prepared_images(
    corpus: Corpus, samples: list[dict[str, Any]], size: int
) -> tuple[pa.Table, dict[str, str]]:
    """Return the table of the images in use, and image id to the hash of its full-size pixels."""

    def work(data: bytes | None) -> tuple[bytes, str]:
        image = to_rgb(data or b"")
        return to_png(resize(image, size)), pixel_hash(image)

    used = pa.array(sorted({image_id for sample in samples for image_id in sample["image_ids"]}), pa.string())
    in_use = corpus.images.filter(pc.is_in(corpus.images["id"], used))
    rows, pictures = [], {}
    for image_id, (png, picture) in map_images(Corpus(in_use, corpus.samples, corpus.fingerprint), work):
        rows.append({"id": image_id, "png": png})
        pictures[image_id] = picture
    return pa.Table.from_pylist(rows, schema=PREPARED_IMAGES), pictures


def _split(samples: list[dict[str, Any]], config: PreprocessConfig, seed: int) -> None:
    """Set each sample's split to the one in force."""
    if config.split == "by_group":
        by_group = assign({sample["group"] for sample in samples}, seed, config.validation, config.test)
        for sample in samples:
            sample["split"] = by_group[sample["group"]]
    elif not any(sample["split"] == "validation" for sample in samples):
        train = [sample for sample in samples if sample["split"] == "train"]
        by_group = assign({sample["group"] for sample in train}, seed, config.validation, 0.0)
        for sample in train:
            sample["split"] = by_group[sample["group"]]


def _refuse_empty(samples: list[dict[str, Any]], config: PreprocessConfig, report: ValidationReport) -> None:
    counts = Counter(sample["split"] for sample in samples)
    empty = [name for name in SPLITS if name != "validation" and not counts[name]]
    unsplit = counts.total() - sum(counts[name] for name in SPLITS)
    if not empty and not unsplit:
        return
    found = ", ".join(f"{counts[name]:,} {name}" for name in SPLITS)
    groups = len({sample["group"] for sample in samples})
    remedy = (
        "the data set publishes no such split: use preprocess.split: by_group"
        if config.split == "official"
        else "add data, change the seed, or raise preprocess.test (a small number of groups may miss a split)"
    )
    fault = (
        f"{' and '.join(empty)} would be empty" if empty else f"{unsplit:,} samples have no published split"
    )
    raise DataError(
        f"{fault}: {len(samples):,} samples in {groups:,} groups gave {found}, after "
        f"{len(report.quarantined_ids):,} in quarantine; {remedy}"
    )
