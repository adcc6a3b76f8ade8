"""What the Qwen vision-language models have in common: images of any size, and positions on three axes."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from radloop.errors import ConfigError
from radloop.models.family import Family, Features, Inputs, Placement, base_of
from radloop.models.packing import Batch, Head
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer, token_ids

# As Qwen2-VL and Qwen2.5-VL ship it, less videos.
_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for content in message['content'] %}{{ content['text'] }}{% endfor %}<|im_end|>{% endgeneration %}\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_ENDS: dict[str, Any] = {"pad_token": "<|endoftext|>", "bos_token": None, "eos_token": "<|im_end|>"}
_LAYER = r"model\.language_model\.layers\.\d+\."
_FEWEST_IMAGE_TOKENS = 4
_PATCH_SIZE, _MERGE_SIZE = 6, 2  # of tiny checkpoints: an image token is 12 x 12 pixels


class QwenVL(Family):
    """A ViT that takes images at their own size, a merger of 2 x 2 patches, and M-RoPE positions.

    Features are kept as the merger gives them: in all but the largest models fewer numbers than it takes in.
    Positions have a temporal, a vertical and a horizontal axis; text counts on all three, from the largest
    that the image has used. The language model's sliding windows (use_sliding_window) are not applied.

    Attributes:
        processor_class: The stock processor's class.
        template: Chat template of `tiny` checkpoints.
    """

    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"self_attn\.(q|k|v|o)_proj",
        "mlp": _LAYER + r"mlp\.(gate|up|down)_proj",
        "projector": r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.(mlp\.[02]|linear_fc[12])",
        "vision": r"model\.visual\.blocks\.\d+\."
        r"(attn\.(qkv|proj)|mlp\.(fc[12]|linear_fc[12]|gate_proj|up_proj|down_proj))",
    }
    kept_exact = ("lm_head", "visual")
    inputs = ("pixel_values", "image_grid_thw")
    geometry = ("image_grid_thw",)
    processor_class: ClassVar[Any]
    template: ClassVar[str] = _TEMPLATE

    # Prompt

    def load_processor(self, folder: Path) -> Any:
        """See `Family.load_processor`; videos cannot be processed."""
        processors = _without_videos(self.processor_class)
        return processors.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def limit_pixels(self, processor: Any, max_pixels: int) -> None:
        """See `Family.limit_pixels`.

        With the largest number of image tokens n = max_pixels / (patch size x merge size)^2, it holds for
        images up to n times as long as wide: a longer one still gets a row of tokens along its length.

        Raises:
            ConfigError: `max_pixels` leaves fewer than 4 tokens.
        """
        images = processor.image_processor
        smallest = _FEWEST_IMAGE_TOKENS * (images.patch_size * images.merge_size) ** 2
        if max_pixels < smallest:
            raise ConfigError(f"max_pixels: got {max_pixels}; this model needs at least {smallest}")
        most = min(max_pixels, images.size["longest_edge"])
        # Small images are enlarged to whole tokens, rounded up, so to less than what is allowed.
        least = min(images.size["shortest_edge"], most // 4)
        images.size = type(images.size)(shortest_edge=least, longest_edge=most)

    def head(self, model: Any, ids: Sequence[int], placements: Sequence[Placement]) -> Head:
        """See `Family.head`; positions are the model's own, from the images' grids."""
        model = base_of(model)
        tokens = torch.tensor([ids])
        if placements:
            positions, _ = model.model.get_rope_index(
                tokens,
                mm_token_type_ids=(tokens == model.config.image_token_id).int(),
                image_grid_thw=torch.cat([place.geometry["image_grid_thw"] for place in placements]),
            )
        else:
            positions = torch.arange(len(ids)).expand(3, 1, -1)
        axes = positions[:, 0].tolist()
        return Head((*ids,), tuple(map(tuple, axes)), max(map(max, axes)) + 1)

    # Images

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        """See `Family.encode`."""
        return self.features(
            model.model.get_image_features(
                pixel_values=torch.cat([item["pixel_values"] for item in inputs]),
                image_grid_thw=torch.cat([item["image_grid_thw"] for item in inputs]),
                return_dict=True,
            )
        )

    def features(self, encoded: Any) -> list[Features]:
        """Return what to keep of the model's own image features, image by image."""
        return [{"image": image} for image in encoded.pooler_output]

    # Language model

    def position_ids(self, batch: Batch) -> torch.Tensor:
        """Return all axes, shape (3, rows, tokens); a fourth would be taken for plain text positions."""
        return batch.position_ids

    # Tests

    def tiny(self, folder: Path, seed: int = 0) -> None:
        tokenizer = tiny_tokenizer(
            special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_NAMED.values()),
            named=_NAMED | {"turn_start_token": "<|im_start|>"},
            **_ENDS,
        )
        ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _NAMED.items()}
        vision = {
            "depth": 3,
            "num_heads": 2,
            "patch_size": _PATCH_SIZE,
            "spatial_merge_size": _MERGE_SIZE,
            "temporal_patch_size": 2,
        }
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            "initializer_range": 0.3,  # so that answers depend on image and question
            **token_ids(tokenizer),
            "bos_token_id": tokenizer.pad_token_id,  # as published; the tokenizer has none
        }
        model_class, config = self.tiny_model(vision, text, {**ids, "tie_word_embeddings": False})
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=_PATCH_SIZE,
            merge_size=_MERGE_SIZE,
            temporal_patch_size=2,
            size={"shortest_edge": 4 * 12**2, "longest_edge": 64 * 12**2},
        )
        processor = _without_videos(self.processor_class)(
            image_processor, tokenizer, chat_template=self.template
        )
        save_random(model_class, config, processor, folder, seed)
        video = {"patch_size": _PATCH_SIZE, "merge_size": _MERGE_SIZE, "temporal_patch_size": 2}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video))  # as published ones have

    @abstractmethod
    def tiny_model(
        self, vision: dict[str, Any], text: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return the model's class and a config from what is common to all: vision, text, and the rest."""


def _without_videos(stock: Any) -> Any:
    """Return a stock processor's class less its video processor, which needs torchvision.

    It has the stock name, which is written into the folders it saves.
    """

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
    ) -> None:
        stock.__init__(self, image_processor, tokenizer, video_processor=None, chat_template=chat_template)

    return type(stock.__name__, (stock,), {"__init__": __init__, "__module__": __name__})
