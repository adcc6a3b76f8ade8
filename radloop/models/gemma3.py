"""Gemma 3 and MedGemma: a SigLIP tower pooled to 256 tokens, and Gemma with sliding windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

from radloop.models import grouped_attention
from radloop.models.family import Family, Features, Inputs
from radloop.models.packing import HEAD, Batch, block_mask
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer, token_ids

# As google/gemma-3-4b-it and google/medgemma-4b-it ship it.
_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
        {{ '<end_of_turn>\n' }}
        {%- endgeneration -%}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
        {{ '<end_of_turn>\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
_CONTROLS: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
_LAYER = r"model\.language_model\.layers\.\d+\."


class Gemma3(Family):
    """Stock `Gemma3ForConditionalGeneration`: Gemma 3 4B, 12B and 27B, MedGemma 4B and 27B multimodal.

    Features are kept pooled and normed, as the projection takes them: less than half of what it makes of
    them. The projection is a bare parameter, not a layer that LoRA could train, so there is no group
    "projector". Activations of the published weights overflow fp16.
    """

    model_type = "gemma3"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"self_attn\.(q|k|v|o)_proj",
        "mlp": _LAYER + r"mlp\.(gate|up|down)_proj",
        "vision": r"model\.vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    }
    upstream = frozenset({"vision"})
    precisions = ("fp32", "bf16", "int8", "nf4")
    packed_attention = grouped_attention.NAME
    flex = False  # its masks are dense
    kept_exact = ("lm_head", "vision_tower", "multi_modal_projector")

    def placeholder(self, processor: Any) -> str:
        """Return the token that begins an image; `image_token_id` is that of its pieces."""
        token: str = processor.boi_token
        return token

    def image_token_id(self, processor: Any) -> int:
        token_id: int = processor.tokenizer.image_token_id
        return token_id

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        """See `Family.encode`; an image with its pan-and-scan crops, if there are any, is one item."""
        caught: list[torch.Tensor] = []
        hook = model.model.multi_modal_projector.mm_soft_emb_norm.register_forward_hook(
            lambda _module, _inputs, normed: caught.append(normed)
        )
        try:
            model.model.get_image_features(torch.cat([item["pixel_values"] for item in inputs]))
        finally:
            hook.remove()
        of_image = caught[0].split([len(item["pixel_values"]) for item in inputs])
        return [{"image": frames.flatten(0, 1)} for frames in of_image]

    def image_arguments(
        self, model: Any, features: Sequence[Features], new: Batch, seen: Batch
    ) -> dict[str, Any]:
        normed = torch.cat([item["image"] for item in features])
        pooled: Any = {"pooler_output": normed @ model.model.multi_modal_projector.mm_input_projection_weight}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(**pooled)}}

    def max_tokens(self, model: Any) -> int:
        longest: int = model.config.text_config.max_position_embeddings
        return longest

    def mask(self, model: Any, new: Batch, seen: Batch) -> dict[str, torch.Tensor]:
        """Return the mask of each kind of layer.

        The tokens of one image, or of one crop, also see those after them. Of all that a token sees, layers
        with a sliding window keep what is less than the window before it. That is counted in positions,
        because in a packed row other tails lie between a tail and its head.
        """
        of_image = (seen.input_ids == model.config.image_token_id) & (seen.segments == HEAD)
        blocks = get_block_sequence_ids_for_mask(of_image.long())
        num_new = new.input_ids.shape[1]
        same_image = (blocks[:, -num_new:, None] == blocks[:, None, :]) & of_image[:, None, :]
        full = block_mask(new, seen) | same_image[:, None]
        first = new.position_ids[0][:, :, None] - model.config.text_config.sliding_window
        near = seen.position_ids[0][:, None, :] > first
        return {"full_attention": full, "sliding_attention": full & near[:, None]}

    def tiny(self, folder: Path, seed: int = 0) -> None:
        named = {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        }
        tokenizer = tiny_tokenizer(
            special=(*_CONTROLS.values(), "<start_of_turn>", "<end_of_turn>", *named.values()),
            named=named,
            **_CONTROLS,
        )
        # As in the published tokenizer: what is written around images joins line ends beside it.
        tokenizer.add_tokens(["\n\n", "\n\n\n", "\n\n\n\n"])
        text = Gemma3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=1,  # attention that chooses, for the same reason as below
            max_position_embeddings=8192,
            sliding_window=12,  # shorter than an image, so that it matters in tests
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            initializer_range=0.3,  # so that answers depend on image and question
            **token_ids(tokenizer),
        )
        vision = SiglipVisionConfig(
            image_size=48,
            patch_size=6,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vision_use_head=False,
        )
        ids: dict[str, Any] = {
            f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()
        }
        config = Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=16, initializer_range=0.3, **ids
        )
        processor = Gemma3Processor(
            Gemma3ImageProcessorPil(size={"height": 48, "width": 48}),
            tokenizer,
            chat_template=_TEMPLATE,
            image_seq_length=16,
        )
        ends = ("<eos>", "<end_of_turn>")
        save_random(_random_model, config, processor, folder, seed, ends)


def _random_model(config: Gemma3Config) -> Gemma3ForConditionalGeneration:
    """Return a random model.

    Stock initialisation sets the projection to zero, and lets the last token's own embedding, which is
    tied to the head, outweigh what the layers add to it.
    """
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    for layer in model.model.language_model.layers:
        torch.nn.init.constant_(layer.post_attention_layernorm.weight, 1)
        torch.nn.init.constant_(layer.post_feedforward_layernorm.weight, 1)
    return model
