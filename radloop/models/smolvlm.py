"""SmolVLM2: Idefics3 with other weights and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMVisionConfig,
)

from radloop.models.idefics3 import TINY_CROPS, TINY_TOWER, Idefics3, template, tiny_llama
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer

_CONTROLS: dict[str, Any] = {
    "pad_token": "<|im_end|>",
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
}


class SmolVLM(Idefics3):
    """Stock `SmolVLMForConditionalGeneration`: HuggingFaceTB/SmolVLM2-256M, 500M and 2.2B.

    The first SmolVLM is of model type idefics3: give it that family.
    """

    model_type = "smolvlm"

    def load_processor(self, folder: Path) -> Idefics3Processor:
        """Return Idefics3's processor, which writes the same prompts.

        SmolVLM's own differs in videos only, for which it does not open without torchvision and num2words.
        """
        processors: Any = Idefics3Processor
        processor: Idefics3Processor = processors.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return processor

    def tiny(self, folder: Path, seed: int = 0) -> None:
        grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
        tokenizer = tiny_tokenizer(
            special=(*_CONTROLS.values(), "<fake_token_around_image>", "<image>", "<global-img>", *grid),
            **_CONTROLS,
        )
        config = SmolVLMConfig(
            text_config=tiny_llama(tokenizer),
            vision_config=SmolVLMVisionConfig(**TINY_TOWER),
            image_token_id=tokenizer.vocab["<image>"],
            scale_factor=3,
            tie_word_embeddings=False,
        )
        processor = Idefics3Processor(
            SmolVLMImageProcessorPil(**TINY_CROPS),
            tokenizer,
            image_seq_len=4,
            chat_template=template("<|im_start|>"),
        )
        save_random(SmolVLMForConditionalGeneration, config, processor, folder, seed)
