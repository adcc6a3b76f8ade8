"""LLaVA-NeXT (LLaVA 1.6): LLaVA that also looks at up to four enlarged tiles of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from radloop.errors import ModelError
from radloop.models.family import Family, Features, Inputs, Placement, caught_inputs
from radloop.models.packing import Batch
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer, token_ids

# As llava-hf/llava-v1.6-mistral-7b-hf ships it, and what the assistant says marked.
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_LAYER = r"model\.language_model\.layers\.\d+\."


class LlavaNext(Family):
    r"""Stock `LlavaNextForConditionalGeneration`, such as `llava-hf/llava-v1.6-mistral-7b-hf`.

    An image becomes a small whole and 2 to 4 enlarged tiles; the tiles' patches are put together to one
    picture, freed of what the processor padded, and each of its lines is closed by `image_newline`. So the
    number of tokens depends on the image's shape: up to 2,928 with a tower of 24 x 24 patches.

    Features are kept as the projector takes them, tile by tile: a quarter of what it makes of them, and it
    can be trained. They are projected and put together in each step by the model's own code.

    Snapshots of the published checkpoint from before its chat template was mended close answers with
    `<\s>`, which is plain text and ends nothing; they are refused.
    """

    model_type = "llava_next"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"self_attn\.(q|k|v|o)_proj",
        "mlp": _LAYER + r"mlp\.(gate|up|down)_proj",
        "projector": r"model\.multi_modal_projector\.linear_[12]",
        "vision": r"model\.vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    }
    upstream = frozenset({"vision"})
    kept_exact = ("lm_head", "vision_tower", "multi_modal_projector")
    inputs = ("pixel_values", "image_sizes")

    def require_template(self, processor: Any) -> None:
        super().require_template(processor)
        if r"<\s>" in processor.chat_template.replace(r"\\", "\\"):
            raise ModelError(
                r"base model: its chat template ends answers with '<\s>', which is plain text and no end "
                "token; write '</s>' there in chat_template.jinja, or take a newer snapshot of the checkpoint"
            )

    def placement(self, processor: Any, width: int, height: int) -> Placement:
        """See `Family.placement`; counted rather than tried, which would take as long as to read an image."""
        (count,) = processor._get_num_multimodal_tokens([(height, width)]).num_image_tokens
        return Placement(self.image_token(processor), (count,))

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        """See `Family.encode`.

        Returns:
            For each image `tiles`, shape (tiles, patches, channels), `image_sizes`, its height and width
            in pixels, and `num_tokens`, how many tokens the model makes of it.
        """
        tiles = [item["pixel_values"][0] for item in inputs]
        sizes = torch.cat([item["image_sizes"] for item in inputs])
        with caught_inputs(model.model.multi_modal_projector) as caught:
            packed = model.model.get_image_features(torch.cat(tiles), sizes, return_dict=True).pooler_output
        split = caught[0].split([len(of_image) for of_image in tiles])
        return [
            {"tiles": found, "image_sizes": size, "num_tokens": torch.tensor(len(tokens))}
            for found, size, tokens in zip(split, sizes, packed, strict=True)
        ]

    def num_image_tokens(self, features: Features) -> int | None:
        return int(features["num_tokens"])

    def image_arguments(
        self, model: Any, features: Sequence[Features], new: Batch, seen: Batch
    ) -> dict[str, Any]:
        projected = model.model.multi_modal_projector(torch.cat([item["tiles"] for item in features]))
        packed, _ = model.model.pack_image_features(
            projected.split([len(item["tiles"]) for item in features]),
            torch.stack([item["image_sizes"] for item in features]),
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            image_newline=model.model.image_newline,
        )
        pooled: Any = {"pooler_output": packed}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(**pooled)}}

    def tiny(self, folder: Path, seed: int = 0) -> None:
        tokenizer = tiny_tokenizer(named={"image_token": "<image>"})
        grid = [
            [24, 48],
            [48, 24],
            [48, 48],
            [72, 24],
            [24, 72],
        ]  # height and width, as published
        layers: Any = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
        }
        text = MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            sliding_window=None,
            initializer_range=0.3,  # so that answers depend on image and question
            **token_ids(tokenizer),
        )
        image_token: Any = tokenizer.convert_tokens_to_ids("<image>")
        config = LlavaNextConfig(
            vision_config=CLIPVisionConfig(image_size=24, patch_size=6, **layers),
            text_config=text,
            image_token_index=image_token,
            image_grid_pinpoints=grid,
            tie_word_embeddings=False,
        )
        image_processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=grid
        )
        processor = LlavaNextProcessor(
            image_processor,
            tokenizer,
            patch_size=6,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # the class token, which "default" then drops
            chat_template=_TEMPLATE,
        )
        save_random(LlavaNextForConditionalGeneration, config, processor, folder, seed)
