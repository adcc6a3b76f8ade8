"""The loss of answer tokens, and what each of them weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from radloop.models.family import Features
from radloop.models.loading import Loaded
from radloop.models.packing import Batch, Row
from radloop.training.last_layer import only_at

FeaturesOf = Callable[[Sequence[str]], list[Features]]  # of images by id
Weighting = Literal["token", "answer"]


def token_losses(loaded: Loaded, features: FeaturesOf, rows: Sequence[Row]) -> torch.Tensor:
    """Return the cross entropy of every answer token of `rows`, float32, shape (answer tokens,)."""
    return _losses(loaded, features, rows, Batch.of(rows, loaded.device))


def summed_loss(
    loaded: Loaded, features: FeaturesOf, rows: Sequence[Row], weighting: Weighting
) -> torch.Tensor:
    """Return the weighted sum of the answer tokens' losses; over `total_weight` it is their mean.

    Args:
        loaded: The model.
        features: Gives the features of images by id.
        rows: Pairs with their answers.
        weighting: 'token': each answer token weighs 1, so a long answer weighs more than a short one.
            'answer': each answer weighs 1, shared equally by its tokens.
    """
    batch = Batch.of(rows, loaded.device)
    losses = _losses(loaded, features, rows, batch)
    if weighting == "answer":
        losses = losses / torch.bincount(batch.answers)[batch.answers]
    return losses.sum()


def total_weight(rows: Sequence[Row], weighting: Weighting) -> int:
    """Return what the answer tokens of `rows` weigh together."""
    groups = [group for row in rows for group in row]
    if weighting == "answer":
        return sum(len(group.tails) for group in groups)
    return sum(group.num_answer_tokens for group in groups)


def _losses(loaded: Loaded, features: FeaturesOf, rows: Sequence[Row], batch: Batch) -> torch.Tensor:
    images = features([image_id for row in rows for group in row for image_id in group.image_ids])
    with only_at(loaded.base_model, batch.predicts):
        logits = loaded.family.logits(loaded.model, batch, images)
    return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
