"""Llama's and Mistral's `tokenizer.model` as a fast tokenizer, as Transformers 4 made it of one.

Transformers 5 needs the sentencepiece package for that, whose newest version needs a protobuf that
others here do not work with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers.tokenization_utils_base import generate_merges
from transformers.utils import sentencepiece_model_pb2_new


def read_sentencepiece(file: Path, bos_token: str) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.model`.

    It starts a text, and what follows a control token, with a blank.

    Args:
        file: The `tokenizer.model`.
        bos_token: What it puts before each text.

    Raises:
        ValueError: It is no byte-pair encoding.
    """
    format: Any = sentencepiece_model_pb2_new
    content = format.ModelProto()
    content.ParseFromString(file.read_bytes())
    if content.trainer_spec.model_type != format.TrainerSpec.BPE:
        raise ValueError("it is no byte-pair encoding")
    vocabulary = {piece.piece: number for number, piece in enumerate(content.pieces)}
    merges = generate_merges(vocabulary)
    kinds = format.ModelProto.SentencePiece
    (unknown,) = [piece.piece for piece in content.pieces if piece.type == kinds.UNKNOWN]
    special = [piece.piece for piece in content.pieces if piece.type in (kinds.UNKNOWN, kinds.CONTROL)]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos_token} $A",
        pair=f"{bos_token} $A {bos_token} $B",
        special_tokens=[(bos_token, vocabulary[bos_token])],
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
