"""The models and data that both sides of the training benchmark get, written into folders."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaTextConfig,
    MllamaVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from radloop.data.phantoms import Stream, make_phantom, questions
from radloop.data.prepared import PREPARED_IMAGES, PREPARED_SAMPLES, PreparedData, prepared_image
from radloop.models import get_family
from radloop.models.tiny_base import tiny_base_folder
from radloop.models.tiny_checkpoint import save_random, token_ids

PIXELS = 96


@dataclass(frozen=True)
class Shape:
    """How much data.

    Attributes:
        images: In the train split.
        questions: About each.
        validation: Further images, with as many questions.
    """

    images: int
    questions: int
    validation: int = 0


def write_data(folder: Path, shape: Shape, seed: int) -> None:
    """Write phantoms with exactly `shape.questions` questions each; where one has fewer, they come again."""
    images: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    splits = (("train", Stream.TRAIN, shape.images), ("validation", Stream.VALIDATION, shape.validation))
    for split, stream, count in splits:
        for index in range(count):
            phantom = make_phantom(stream, seed, index, PIXELS)
            images.append(prepared_image(phantom.name, Image.fromarray(phantom.pixels).convert("RGB")))
            for number, asked in enumerate(islice(cycle(questions(phantom)), shape.questions)):
                samples.append(
                    {
                        "id": f"{phantom.name}-{number}",
                        "split": split,
                        "group": phantom.name,
                        "image_ids": [phantom.name],
                        "question": asked.text,
                        "prompt": asked.text,
                        "answers": [asked.answer],
                    }
                )
    folder.mkdir(parents=True)
    PreparedData(
        pa.Table.from_pylist(images, schema=PREPARED_IMAGES),
        pa.Table.from_pylist(samples, schema=PREPARED_SAMPLES),
        f"{seed:016x}",
    ).save(folder)


def tiny_base() -> Path:
    """Return the base that radloop ships: 3 M parameters, 64 image tokens."""
    return tiny_base_folder()


def write_llava_100m(folder: Path) -> None:
    """Write a random LLaVA of LLaVA-1.5's shape, 576 image tokens, at about a seventieth of its size."""
    tiny = get_family("llava").load_processor(tiny_base_folder())
    text = LlamaConfig(
        vocab_size=len(tiny.tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        max_position_embeddings=4096,
        **token_ids(tiny.tokenizer),
    )
    vision = CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tiny.image_token_id,
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tiny.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.chat_template,
    )
    save_random(LlavaForConditionalGeneration, config, processor, folder, seed=0)


def write_mllama(folder: Path) -> None:
    """Write a random model of Llama-3.2-Vision's shape and 33 M parameters: the tower sees 4 tiles.

    An image of four tiles with its caption, 50 tokens in all, costs the published model 6.7 times as many
    FLOPs in the tower, which runs forward only, as in the language model, forward and backward with LoRA
    layers of rank 16 (5.9 times with 60 tokens, 7.8 with 40). Here it is 6.7 times as well, with the 37
    tokens that a question about a phantom has. So of five epochs a cache can make no more than 3.3 times as
    many a second. It is wide enough for matrix products to take the time, not the calls around them.
    """
    get_family("mllama").tiny(folder)  # for its tokenizer and template
    processor = get_family("mllama").load_processor(folder)
    processor.image_processor.size = {"height": 48, "width": 48}  # phantoms fill four tiles
    depth, width = 8, 320
    vision = MllamaVisionConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_global_layers=2,
        attention_heads=8,
        intermediate_size=4 * width,
        intermediate_layers_indices=[1, 2, 4, 5, 7],
        vision_output_dim=6 * width,
        image_size=48,
        patch_size=4,
    )
    text = MllamaTextConfig(
        vocab_size=len(processor.tokenizer) - 1,
        hidden_size=512,
        num_hidden_layers=5,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=1856,
        max_position_embeddings=1024,
        cross_attention_layers=[3],
        **token_ids(processor.tokenizer),
    )
    config = MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=len(processor.tokenizer) - 1
    )
    save_random(MllamaForConditionalGeneration, config, processor, folder, seed=0)
