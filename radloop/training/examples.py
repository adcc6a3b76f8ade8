"""From a split of the prepared data to the groups that training reads, grouped by image."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError, DataError, ModelError
from radloop.models import packing
from radloop.models.packing import Group, Tokens
from radloop.models.prompts import Prompts, Size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """All questions of a split about the same images; a question about none is a set of its own.

    Attributes:
        groups: The pairs, arranged.
        sample_ids: Of the pairs, in the order that `Group.numbers` counts.
    """

    groups: list[Group]
    sample_ids: list[str]


@dataclass(frozen=True)
class Examples:
    """One split.

    Attributes:
        sets: In the order of the samples.
        num_samples: Question-answer pairs in all sets.
        num_cut: How many of them lost the end of their answer.
    """

    sets: list[ImageSet]
    num_samples: int
    num_cut: int

    @property
    def num_images(self) -> int:
        return len(
            {image_id for found in self.sets for group in found.groups for image_id in group.image_ids}
        )


def read_examples(
    data: PreparedData, split: str, prompts: Prompts, share_prefix: bool, max_tokens: int | None = None
) -> Examples:
    """Tokenize a split and arrange it in groups; the reference is the first of a sample's answers.

    Args:
        data: Holds the split.
        split: Its name.
        prompts: Of the model.
        share_prefix: Whether pairs about the same images share a group.
        max_tokens: Of a pair with its images; a longer answer loses its end, and its end token with
            it. None: what the model was made for.

    Raises:
        ConfigError: `max_tokens` is more than the model was made for.
        DataError: A sample has no room for a single token of its answer.
        ModelError: See `Prompts.pairs`.
    """
    limit = _limit(prompts, max_tokens)
    columns = data.split(split).select(["id", "image_ids", "prompt", "answers"]).to_pylist()
    sizes = [[data.size(image_id) for image_id in row["image_ids"]] for row in columns]
    pairs = _pairs(prompts, columns, sizes)
    of_images: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(columns):
        of_images.setdefault((*row["image_ids"],) or ("", row["id"]), []).append(number)
    fitted = [_fit(pair, limit, row["id"]) for row, pair in zip(columns, pairs, strict=True)]
    sets = []
    for numbers in of_images.values():
        image_ids = columns[numbers[0]]["image_ids"]
        groups = packing.groups(image_ids, [fitted[n] for n in numbers], share_prefix, lengthen_heads=True)
        sets.append(ImageSet(groups, [columns[n]["id"] for n in numbers]))
    num_cut = sum(after is not before for after, before in zip(fitted, pairs, strict=True))
    if num_cut:
        logger.warning(
            "finetune: %d of %d answers of split %s are cut to keep their samples within %d tokens",
            num_cut,
            len(pairs),
            split,
            limit,
        )
    return Examples(sets, len(columns), num_cut)


def _pairs(prompts: Prompts, rows: list[dict[str, Any]], sizes: list[list[Size]]) -> list[Tokens]:
    try:
        return _pairs_of(prompts, rows, sizes)
    except ModelError:
        for row, size in zip(rows, sizes, strict=True):
            try:
                _pairs_of(prompts, [row], [size])
            except ModelError as error:
                raise ModelError(f"finetune: sample {row['id']}: {error.message}") from error
        raise


def _pairs_of(prompts: Prompts, rows: list[dict[str, Any]], sizes: list[list[Size]]) -> list[Tokens]:
    return prompts.pairs([row["prompt"] for row in rows], [row["answers"][0] for row in rows], sizes)


def _limit(prompts: Prompts, max_tokens: int | None) -> int:
    if max_tokens is not None and max_tokens > prompts.max_tokens:
        raise ConfigError(
            f"finetune.max_tokens: got {max_tokens}, but the base model takes {prompts.max_tokens}; lower it "
            "or leave it out"
        )
    return max_tokens or prompts.max_tokens


def _fit(pair: Tokens, limit: int, sample_id: str) -> Tokens:
    """Cut the end of an answer that does not fit; everything before it, the images first of all, is kept."""
    over = len(pair) - limit
    if over <= 0:
        return pair
    if over >= pair.num_answer:
        raise DataError(
            f"finetune: sample {sample_id} has {len(pair) - pair.num_answer} tokens before its answer, which "
            f"leaves no room for the answer in {limit}; shorten its question, show smaller images, raise "
            "finetune.max_tokens if it is set, or choose another base"
        )
    return replace(pair, tail=pair.tail[:-over], num_answer=pair.num_answer - over)
