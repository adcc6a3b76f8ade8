"""From a question and its answer to the model's tokens, by its own chat template.

The tokens of a pair are cut after the last image token: the head, with the images, is the same for
every question about them and is computed once; the tail holds question and answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Self

from radloop.errors import ModelError
from radloop.models.family import Family, Placement, Turn
from radloop.models.packing import Head, Tokens

Size = tuple[int, int]  # width and height in pixels

# How many are kept. A head can hold a question, where a template puts that before the image.
_PLACEMENTS, _HEADS = 4096, 256


@dataclass(frozen=True)
class Prompts:
    """Applies one model's chat template and tokenizer.

    Attributes:
        family: Knows how images stand in the text.
        processor: The model's processor.
        model: For what positions depend on in its config.
        end_ids: Token ids that end an answer.
        max_tokens: Longest prompt with answer that the model was made for.
    """

    family: Family
    processor: Any
    model: Any
    end_ids: tuple[int, ...]
    max_tokens: int

    @classmethod
    def of(cls, family: Family, processor: Any, model: Any) -> Self:
        """Read the figures from the model's own configuration.

        Raises:
            ModelError: There is no chat template or it fails, there is no token that ends an answer, or
                config and processor have different tokens for an image.
        """
        family.require_template(processor)
        end_ids = family.end_ids(processor, model)
        if not end_ids:
            raise ModelError(
                "base model: neither its generation_config.json nor its tokenizer names an eos token"
            )
        named, used = getattr(model.config, "image_token_id", None), family.image_token_id(processor)
        if named not in (None, used):
            raise ModelError(
                f"base model: its config.json has {named} for the token of an image, its processor {used}; "
                "mend the one that is wrong, or fetch the files again"
            )
        prompts = cls(family, processor, model, end_ids=end_ids, max_tokens=family.max_tokens(model))
        prompts._render("Is this a template?", None, 1)
        return prompts

    def placement(self, size: Size) -> Placement:
        """Return how an image of this size stands in a prompt."""
        return self._placement(*size)

    # These hold no reference to `self`, so that a model that is dropped is freed at once.

    @cached_property
    def _placement(self) -> Callable[[int, int], Placement]:
        return lru_cache(_PLACEMENTS)(partial(self.family.placement, self.processor))

    @cached_property
    def _head(self) -> Callable[[tuple[int, ...], tuple[Size, ...]], Head]:
        family, processor, model, placement = self.family, self.processor, self.model, self._placement

        @lru_cache(_HEADS)
        def head(ids: tuple[int, ...], sizes: tuple[Size, ...]) -> Head:
            """Write out the runs of image tokens."""
            placements = [placement(*size) for size in sizes]
            runs = iter([run for place in placements for run in place.runs])
            image = family.image_token_id(processor) if sizes else None
            written = [token for at in ids for token in [at] * (next(runs) if at == image else 1)]
            return family.head(model, written, placements)

        return head

    def questions(self, questions: Sequence[str], sizes: Sequence[Sequence[Size]]) -> list[Tokens]:
        """Return the tokens that a model is to continue, one for each question.

        Args:
            questions: The user's whole turns.
            sizes: For each question the width and height of its images, in order.

        Raises:
            ModelError: The chat template does not place each image exactly once.
        """
        texts = [
            self._render(question, None, len(of_question))
            for question, of_question in zip(questions, sizes, strict=True)
        ]
        return self._tokens(texts, sizes)

    def pairs(
        self, questions: Sequence[str], answers: Sequence[str], sizes: Sequence[Sequence[Size]]
    ) -> list[Tokens]:
        """Return the tokens of questions with their answers, each answer closed by an end token.

        Raises:
            ModelError: The chat template does not place each image exactly once, or what it writes
                before an answer are not the tokens that a model continues when asked.
        """
        asked = [*zip(questions, answers, map(tuple, sizes), strict=True)]
        distinct = [*dict.fromkeys(asked)]  # the same is often asked about many images
        found = dict(zip(distinct, self._pairs(*zip(*distinct, strict=True)), strict=True)) if asked else {}
        return [replace(found[one]) for one in asked]  # each its own: batches tell samples apart by them

    def _pairs(
        self, questions: Sequence[str], answers: Sequence[str], sizes: Sequence[Sequence[Size]]
    ) -> list[Tokens]:
        prompts = self.questions(questions, sizes)
        texts = [
            self._render(question, answer, len(of_question)).rstrip()
            for question, answer, of_question in zip(questions, answers, sizes, strict=True)
        ]
        pairs = []
        for prompt, text, full in zip(prompts, texts, self._tokens(texts, sizes), strict=True):
            tail = full.tail if full.ids[-1] in self.end_ids else (*full.tail, self.end_ids[0])
            start = len(prompt.tail)
            if full.head != prompt.head or tail[:start] != prompt.tail or len(tail) <= start or not start:
                raise ModelError(
                    "base model: its chat template writes other tokens before a given answer than before one "
                    f"to be generated, here in {text!r}; training would not fit answering, mend "
                    "chat_template.jinja"
                )
            pairs.append(Tokens(full.head, tail, len(tail) - start))
        return pairs

    def answer(self, ids: Sequence[int]) -> str:
        """Return the text of generated token ids."""
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _render(self, question: str, answer: str | None, num_images: int) -> str:
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": self._defuse(question)}]
        turns: list[Turn] = [{"role": "user", "content": content}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": self._defuse(answer)}]})
        return self.family.render(self.processor, turns, ask=answer is None)

    def _defuse(self, text: str) -> str:
        """Take their meaning from control tokens in a user's text: "<image>" becomes "< image>"."""
        return self._controls.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        tokenizer = self.processor.tokenizer
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        controls = {*tokenizer.all_special_tokens, *added, *self.family.controls(self.processor)}
        return re.compile("|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True)))

    def _tokens(self, texts: list[str], sizes: Sequence[Sequence[Size]]) -> list[Tokens]:
        placed = [[self.placement(size) for size in of_text] for of_text in sizes]
        filled = [self._fill(text, of_text) for text, of_text in zip(texts, placed, strict=True)]
        tokenized = self.family.tokenize(self.processor, filled) if filled else []
        return [self._cut(ids, tuple(of_text)) for ids, of_text in zip(tokenized, sizes, strict=True)]

    def _fill(self, text: str, placements: Sequence[Placement]) -> str:
        """Put what stands for the images in the places of their placeholders."""
        pieces = text.split(self.family.placeholder(self.processor))
        if len(pieces) != len(placements) + 1:
            raise ModelError(
                f"base model: its chat template writes {len(pieces) - 1} image tokens for {len(placements)} "
                "images"
            )
        texts = [
            piece
            for place, after in zip(placements, pieces[1:], strict=True)
            for piece in (place.text, after)
        ]
        return "".join((pieces[0], *texts))

    def _cut(self, ids: list[int], sizes: tuple[Size, ...]) -> Tokens:
        """Cut after the last image token."""
        image = self.family.image_token_id(self.processor) if sizes else None
        end = max((at for at, token in enumerate(ids) if token == image), default=0) + 1
        return Tokens(self._head(tuple(ids[:end]), sizes), tuple(ids[end:]))
