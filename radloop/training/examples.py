"""From a split of the prepared data to the rows that training reads, grouped by image."""

from __future__ import annotations

from dataclasses import dataclass

from radloop.data.prepared import PreparedData
from radloop.errors import DataError
from radloop.models.prompts import Prompts, Tokens
from radloop.training import packing


@dataclass(frozen=True)
class Examples:
    """One split.

    Attributes:
        rows_of: Rows by image id, images in the order of the samples.
        num_samples: Question-answer pairs in all rows.
    """

    rows_of: dict[str, list[packing.Row]]
    num_samples: int


def read_examples(data: PreparedData, split: str, prompts: Prompts, share_prefix: bool) -> Examples:
    """Tokenize a split and arrange it in rows; the reference is the first of a sample's answers.

    Raises:
        DataError: A sample has other than one image, or more tokens than the model was made for.
        ModelError: See `Prompts.pairs`.
    """
    columns = data.split(split).select(["id", "image_ids", "prompt", "answers"]).to_pylist()
    pairs = prompts.pairs([row["prompt"] for row in columns], [row["answers"][0] for row in columns])
    by_image: dict[str, list[Tokens]] = {}
    for row, pair in zip(columns, pairs, strict=True):
        if len(row["image_ids"]) != 1:
            raise DataError(
                f"finetune: sample {row['id']} has {len(row['image_ids'])} images; training takes exactly "
                "one image a sample, split it into one sample an image"
            )
        if len(pair) > prompts.max_tokens:
            raise DataError(
                f"finetune: sample {row['id']} has {len(pair)} tokens with its image, the base model takes "
                f"{prompts.max_tokens}; shorten its question or answer, or choose another base"
            )
        by_image.setdefault(row["image_ids"][0], []).append(pair)
    rows_of = {name: packing.rows(name, tokens, share_prefix) for name, tokens in by_image.items()}
    return Examples(rows_of, len(columns))
