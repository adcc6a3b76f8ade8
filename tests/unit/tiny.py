"""A random LLaVA of the stock architecture, as small as it gets, and prepared data for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from radloop.data.prepared import PREPARED_IMAGES, PREPARED_SAMPLES, PreparedData, prepared_image

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ':' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ ' <image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ ' ' }}{% generation %}{{ part['text'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_WORDS = [
    "USER: ASSISTANT: Is there a pleural effusion? Which side? How many nodules are there? yes no left right",
    "What abnormality is seen in the left lung? cardiomegaly pneumothorax consolidation upper middle lower",
]
QUESTIONS = [
    "Is there a pleural effusion?",
    "Which side?",
    "How many nodules are there?",
    "What abnormality is seen in the left lung?",
    "Is there cardiomegaly or a pneumothorax?",
]
ANSWERS = ["yes", "no", "left", "2", "upper zone", "a consolidation in the right lower zone"]


def image(number: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Return an RGB picture of noise, another for each number."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))


def prepared(train: int, validation: int = 0, questions: int = 4) -> PreparedData:
    """Return data with that many images a split, each with up to `questions` questions."""
    images, samples = [], []
    for number in range(train + validation):
        images.append(prepared_image(f"image-{number}", image(number)))
        for index in range(1 + number % questions):
            question = QUESTIONS[(number + index) % len(QUESTIONS)]
            samples.append(
                {
                    "id": f"sample-{number}-{index}",
                    "split": "train" if number < train else "validation",
                    "image_ids": [f"image-{number}"],
                    "question": question,
                    "prompt": question,
                    "answers": [ANSWERS[(3 * number + index) % len(ANSWERS)]],
                }
            )
    return PreparedData(
        pa.Table.from_pylist(images, schema=PREPARED_IMAGES),
        pa.Table.from_pylist(samples, schema=PREPARED_SAMPLES),
        "0123456789abcdef",
    )


def save_base(
    folder: Path, *, tower: str = "siglip", width: int = 32, seed: int = 0, template: str = TEMPLATE
) -> Path:
    """Write a random base model into `folder` and return it.

    Args:
        folder: Made if it does not exist.
        tower: 'siglip' (feature layer -2, strategy 'full') or 'clip' (with a class token, 'default').
        width: Of the language model.
        seed: Of the weights.
        template: The chat template.
    """
    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision_config = (SiglipVisionConfig if tower == "siglip" else CLIPVisionConfig)(
        image_size=48, patch_size=12, **sizes
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # so that answers depend on image and question
    )
    strategy = "full" if tower == "siglip" else "default"
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.model.vision_tower.parameters():  # let the picture matter
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    image_processor = (
        SiglipImageProcessorPil(size={"height": 48, "width": 48})
        if tower == "siglip"
        else CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=12,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=0 if tower == "siglip" else 1,
        chat_template=template,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _WORDS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "<s>", "</s>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
    )
