"""From a question and its answer to the model's tokens, by its own chat template.

The tokens of a pair are cut after the last image token: the head, with the image, is the same for
every question about an image and is computed once; the tail holds question and answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

from radloop.errors import ModelError


@dataclass(frozen=True)
class Tokens:
    """The token ids of one prompt, or of one prompt with its answer.

    Attributes:
        head: Up to and including the last image token.
        tail: The rest. `head + tail` are the tokens of the chat template.
        num_answer: How many of the last tokens of `tail` are the answer with its end token.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]
    num_answer: int = 0

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)


@dataclass(frozen=True)
class Prompts:
    """Applies one model's chat template and tokenizer.

    Attributes:
        processor: The model's processor, with a chat template.
        num_image_tokens: Tokens that stand for one image.
        end_ids: Token ids that end an answer.
        max_tokens: Longest prompt with answer that the model was made for.
    """

    processor: Any
    num_image_tokens: int
    end_ids: tuple[int, ...]
    max_tokens: int

    @classmethod
    def of(cls, processor: Any, model: Any) -> Self:
        """Read the figures from the model's own configuration.

        Raises:
            ModelError: There is no chat template, or no token that ends an answer.
        """
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                "base model: its processor has no chat template; add chat_template.jinja to its folder"
            )
        blank = Image.new("RGB", (64, 64))
        ids = processor(images=blank, text=processor.image_token)["input_ids"][0]
        ends = model.generation_config.eos_token_id
        ends = processor.tokenizer.eos_token_id if ends is None else ends
        if ends is None:
            raise ModelError(
                "base model: neither its generation_config.json nor its tokenizer names an eos token"
            )
        return cls(
            processor,
            num_image_tokens=sum(token == processor.image_token_id for token in ids),
            end_ids=tuple(ends) if isinstance(ends, list) else (ends,),
            max_tokens=model.config.get_text_config().max_position_embeddings,
        )

    def questions(self, questions: Sequence[str]) -> list[Tokens]:
        """Return the tokens that a model is to continue, one for each question about one image.

        Raises:
            ModelError: The chat template does not place exactly one image.
        """
        return [
            self._cut(ids) for ids in self._tokenize([self._render(question, None) for question in questions])
        ]

    def pairs(self, questions: Sequence[str], answers: Sequence[str]) -> list[Tokens]:
        """Return the tokens of questions with their answers, each answer closed by an end token.

        Raises:
            ModelError: The chat template does not place exactly one image, or what it writes
                before an answer are not the tokens that a model continues when asked.
        """
        prompts = self.questions(questions)
        texts = [self._render(*pair).rstrip() for pair in zip(questions, answers, strict=True)]
        pairs = []
        for prompt, text, ids in zip(prompts, texts, self._tokenize(texts), strict=True):
            full = self._cut(ids if ids[-1] in self.end_ids else [*ids, self.end_ids[0]])
            start = len(prompt.tail)
            if (
                full.head != prompt.head
                or full.tail[:start] != prompt.tail
                or len(full.tail) <= start
                or not start
            ):
                raise ModelError(
                    "base model: its chat template writes other tokens before a given answer than before one "
                    f"to be generated, here in {text!r}; training would not fit answering, mend "
                    "chat_template.jinja"
                )
            pairs.append(Tokens(full.head, full.tail, len(full.tail) - start))
        return pairs

    def answer(self, ids: Sequence[int]) -> str:
        """Return the text of generated token ids."""
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _render(self, question: str, answer: str | None) -> str:
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self._defuse(question)}]}
        ]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": self._defuse(answer)}]})
        text: str = self.processor.apply_chat_template(turns, add_generation_prompt=answer is None)
        return text

    def _defuse(self, text: str) -> str:
        """Take their meaning from control tokens in a user's text: "<image>" becomes "< image>"."""
        controls = [*self.processor.tokenizer.all_special_tokens, self.processor.image_token]
        pattern = "|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True))
        return re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        tokenizer = self.processor.tokenizer
        # As the processor does: the template may already have written the begin token.
        written = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=not written)["input_ids"]
        return ids

    def _cut(self, ids: list[int]) -> Tokens:
        image = self.processor.image_token_id
        if ids.count(image) != 1:
            raise ModelError(
                f"base model: its chat template writes {ids.count(image)} image tokens for one image"
            )
        at = ids.index(image)
        return Tokens((*ids[:at], *[image] * self.num_image_tokens), tuple(ids[at + 1 :]))
