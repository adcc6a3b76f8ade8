"""A model as its documentation runs it: pixels with every prompt, one prompt at a time, nothing kept.

Here is no code of radloop's but what opens a processor, so that it can say what radloop has to compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText

from radloop.models.family import Family

Inputs = Mapping[str, torch.Tensor]  # of the model


@dataclass(frozen=True)
class Pair:
    """A question about images, which are named in the order of the prompt, and its answer."""

    image_ids: tuple[str, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Stock:
    """A model that is asked by a chat template, and its processor."""

    model: Any
    processor: Any
    images: Mapping[str, Image.Image]

    @classmethod
    def of(
        cls, family: Family, folder: Path, images: Mapping[str, Image.Image], adapter: Path | None = None
    ) -> Stock:
        """Load the base of a folder, with the adapter of another on it, ready to be trained."""
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
        kind = {"blip": Captioner, "fuyu": Continuer}.get(model.config.model_type, Stock)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        return kind(model.eval(), family.load_processor(folder), images)

    @property
    def end_ids(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    def asked(self, pair: Pair) -> Inputs:
        """Return what `generate` takes for a question."""
        return self._inputs(
            self.processor.apply_chat_template([_turn("user", pair)], add_generation_prompt=True), pair
        )

    def answered(self, pair: Pair) -> Inputs:
        """Return what `forward` takes for a question with its answer and one end token."""
        turns = [_turn("user", pair), _turn("assistant", pair)]
        text = self.processor.apply_chat_template(turns).rstrip()
        ends = self.processor.tokenizer.convert_ids_to_tokens(self.end_ids)
        return self._inputs(text if text.endswith(tuple(ends)) else text + ends[0], pair)

    def prompt(self, pair: Pair) -> list[int]:
        """Return the tokens of a question that `generate` begins with."""
        return self.asked(pair)["input_ids"][0].tolist()

    def answer_logits(self, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits that predict the answer, shape (answer tokens, vocabulary), and its tokens."""
        inputs = self.answered(pair)
        start = len(self.prompt(pair))
        return self.model(**inputs).logits[0, start - 1 : -1], inputs["input_ids"][0, start:]

    def loss(self, pairs: list[Pair]) -> torch.Tensor:
        """Return the mean cross entropy of all answer tokens of the pairs."""
        losses = [
            torch.nn.functional.cross_entropy(*self.answer_logits(pair), reduction="none") for pair in pairs
        ]
        return torch.cat(losses).mean()

    def generate(self, pair: Pair, max_new_tokens: int) -> tuple[list[int], float]:
        """Return the tokens of the greedy answer, up to the first end token, and their probability."""
        output = self.model.generate(
            **self.asked(pair),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids = output.sequences[0, len(self.prompt(pair)) :].tolist()
        steps = zip(output.logits, ids, strict=True)
        return ids, math.prod(logits[0].softmax(-1)[token].item() for logits, token in steps)

    def _inputs(self, text: str, pair: Pair) -> Inputs:
        begin = self.processor.tokenizer.bos_token
        written = begin is not None and text.startswith(begin)  # by the template, so not once more
        images = [[self.images[name] for name in pair.image_ids]] if pair.image_ids else None
        return self.processor(images=images, text=[text], add_special_tokens=not written, return_tensors="pt")


class Captioner(Stock):
    """BLIP, whose `generate` puts its own begin token first and drops the separator at the end."""

    @property
    def end_ids(self) -> list[int]:
        return [self.model.config.text_config.sep_token_id]

    def asked(self, pair: Pair) -> Inputs:
        return self._inputs(pair.question, pair)

    def answered(self, pair: Pair) -> Inputs:
        inputs = self._inputs(f"{pair.question} {pair.answer}", pair)
        inputs["input_ids"][:, 0] = self.model.config.text_config.bos_token_id
        return inputs

    def prompt(self, pair: Pair) -> list[int]:
        return [self.model.config.text_config.bos_token_id, *super().prompt(pair)[1:-1]]


class Continuer(Stock):
    """Fuyu, whose processor ends every text with the token that begins an answer."""

    def asked(self, pair: Pair) -> Inputs:
        return self._inputs(f"{pair.question}\n", pair)

    def answered(self, pair: Pair) -> Inputs:
        end = self.processor.tokenizer.eos_token
        inputs = self._inputs(f"{pair.question}\n<0x04>{pair.answer}{end}", pair)
        return {
            name: value[:, :-1] if value.shape == inputs["input_ids"].shape else value
            for name, value in inputs.items()
        }


def _turn(role: str, pair: Pair) -> dict[str, Any]:
    if role == "assistant":
        return {"role": role, "content": [{"type": "text", "text": pair.answer}]}
    shown = [{"type": "image"} for _ in pair.image_ids]
    return {"role": role, "content": [*shown, {"type": "text", "text": pair.question}]}
