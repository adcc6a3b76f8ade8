"""Random checkpoints of a family's architecture, small enough for tests; the same every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from radloop.models.quiet import without_progress_bars

_WORDS = [
    "USER: ASSISTANT: Is there a pleural effusion? Which side? How many nodules are there? yes no left right",
    "What abnormality is seen in the left lung? cardiomegaly pneumothorax consolidation upper middle lower",
]
_VOCABULARY = 400


def tiny_tokenizer(
    special: Sequence[str] = ("<pad>", "<s>", "</s>", "<image>"),
    named: Mapping[str, str] | None = None,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that takes any text.

    Args:
        special: Control tokens, the first ids in this order; among them `<pad>`, `<s>` and `</s>`,
            unless `options` name others.
        named: Attribute to control token, such as {"image_token": "<image>"}, which processors look for.
        options: Further arguments of `PreTrainedTokenizerFast`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(_VOCABULARY, 300 + len(special)),
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_WORDS, trainer)
    defaults = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=dict(named or {}), **(defaults | options)
    )


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return begin, end and padding ids as model configs take them."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: value for name in names if (value := getattr(tokenizer, name)) is not None}


def save_random(
    model_class: Any, config: Any, processor: Any, folder: Path, seed: int, ends: Sequence[str] = ()
) -> None:
    """Draw the weights of `config` by `seed` and write model and processor, as a user would find them.

    Vision weights are drawn wide, so that answers depend on the picture. Answers end with one of the
    tokens `ends`, if there are any, else with the tokenizer's eos token.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if ("vision" in name or "visual" in name) and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.random.set_rng_state(state)
    for name, value in token_ids(processor.tokenizer).items():
        setattr(model.generation_config, name, value)
    if ends:
        model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(list(ends))
    folder.mkdir(parents=True, exist_ok=True)
    with without_progress_bars():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
