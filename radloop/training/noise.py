"""NEFTune: noise on what the language model reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from radloop.models.packing import Row


class EmbeddingNoise:
    """Adds uniform noise in +-alpha / sqrt(length * width) to the embeddings of text tokens.

    The length is that of the token's own pair with its head, so that packing makes the noise no
    smaller. Where a family puts an image's features in the places of its tokens, those have none; a token
    that stands for a whole image, as Mllama's does, gets noise like any other. It is drawn from torch's
    global generator.

    Source: Jain et al., NEFTune: Noisy Embeddings Improve Instruction Finetuning, ICLR 2024.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self._embeddings = model.get_input_embeddings()
        self._alpha = alpha

    @contextmanager
    def on(self, rows: Sequence[Row]) -> Iterator[None]:
        """Add noise to the forward passes of `rows` in this block."""
        if not self._alpha:
            yield
            return
        packed, apart = rows, [(group,) for row in rows for group in row]

        def add(_module: Any, _inputs: Any, embeddings: torch.Tensor) -> torch.Tensor:
            # BLIP gives every group a row of its own, which is the same where no rows are shared.
            laid = packed if len(embeddings) == len(packed) else apart
            lengths = pad_sequence([_lengths(row) for row in laid], batch_first=True, padding_value=1.0)
            size = self._alpha / (lengths.to(embeddings.device) * embeddings.shape[-1]).sqrt()
            noise = torch.empty_like(embeddings).uniform_(-1, 1)
            return embeddings + noise * size[..., None].to(embeddings.dtype)

        hook = self._embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()


def _lengths(row: Row) -> torch.Tensor:
    """Return for each token of a row the length of its pair; for a head the mean over its pairs."""
    lengths: list[float] = []
    for group in row:
        of_pairs = [*map(len, group.tails)]
        lengths += [sum(of_pairs) / len(of_pairs)] * len(group.head)
        for pair, length in zip(group.tails, of_pairs, strict=True):
            lengths += [length] * len(pair.read)
    return torch.tensor(lengths)
