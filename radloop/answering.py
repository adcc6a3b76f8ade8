"""What a fine-tuned model needs besides its weights to answer, and the answering itself.

The registry, the Bento and every served answer go through here, so that a question in production
meets the same image size and the same prompt as in training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from radloop.config import Count, EvaluationConfig, PreprocessConfig, Section, fill_prompt
from radloop.errors import ModelError

ANSWER_FILE = "answer.json"
_REQUIREMENTS = (
    "accelerate",
    "click",
    "numpy",
    "peft",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
MAX_QUESTION = 500  # characters


class AnswerConfig(Section):
    """How a version is asked: the steps from an image and a question to model input, and their limits."""

    image_size: Count
    prompt: str
    max_new_tokens: Count

    @classmethod
    def of(cls, preprocess: PreprocessConfig, evaluation: EvaluationConfig) -> Self:
        """Collect the settings from the sections of the run that trained the adapter."""
        return cls(
            image_size=preprocess.image_size,
            prompt=preprocess.prompt,
            max_new_tokens=evaluation.max_new_tokens,
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `answer.json` of a registered adapter's folder.

        Raises:
            ModelError: The file is missing or not what this version of radloop writes.
        """
        try:
            return cls.model_validate_json((folder / ANSWER_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise ModelError(
                f"{folder / ANSWER_FILE} cannot be used ({str(error).splitlines()[0]}); "
                "name the folder of a registered adapter"
            ) from None

    def write(self, folder: Path) -> None:
        """Write `answer.json` into `folder`."""
        (folder / ANSWER_FILE).write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")


def requirements(*more: str) -> list[str]:
    """Pin what answering needs, and `more`, to the installed versions."""
    names = sorted({*_REQUIREMENTS, *more})
    # A local version such as 2.13.0+cpu is on no public index.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


@dataclass(frozen=True)
class Reply:
    """An answer and how sure the model is of it, between 0 and 1."""

    text: str
    confidence: float


class Answerer:
    """A registered adapter on its base, ready for encoded images and questions in words.

    Args:
        folder: Adapter files and `answer.json`, as the registry and the Bento keep them.
    """

    def __init__(self, folder: Path) -> None:
        from radloop.inference import Engine
        from radloop.training.adapter import Adapter

        self.config = AnswerConfig.read(folder)
        self._engine = Engine(Adapter.load(folder).base, folder)

    def answer(self, image: bytes, question: str) -> Reply:
        """Answer a question on an image.

        Args:
            image: An encoded file: PNG, JPEG, TIFF, ... of any mode.
            question: 1 to 500 characters.

        Raises:
            DataError: The bytes are not a readable image, or the question is empty or too long.
        """
        from radloop.data import imaging
        from radloop.errors import DataError

        question = question.strip()
        if not 1 <= len(question) <= MAX_QUESTION:
            raise DataError(
                f"the question has {len(question)} characters; ask one of 1 to {MAX_QUESTION} characters"
            )
        try:
            pixels = imaging.resize(imaging.to_rgb(image), self.config.image_size)
        except DataError as error:
            raise DataError(f"image: {error}") from None
        prompt = fill_prompt(self.config.prompt, question)
        answer = self._engine.answer_one(pixels, prompt, self.config.max_new_tokens)
        return Reply(text=answer.text, confidence=answer.confidence)
