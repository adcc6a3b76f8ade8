"""Llama 3.2 Vision: the language model looks at the image by cross attention, not at image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    Cache,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from radloop.models import prefix_attention
from radloop.models.family import Family, Features, Inputs, Placement, base_of
from radloop.models.packing import HEAD, Batch, Head
from radloop.models.prefix_layout import ByGroup
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer, token_ids

# As meta-llama/Llama-3.2-11B-Vision-Instruct ships it, less what it says about tools.
_TEMPLATE = """{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- set image_ns = namespace(has_images=false) %}
{%- for message in messages %}
    {%- for content in message['content'] %}
        {%- if content['type'] == 'image' %}
            {%- set image_ns.has_images = true %}
        {%- endif %}
    {%- endfor %}
{%- endfor %}
{%- if image_ns.has_images and not system_message == "" %}
    {{- raise_exception("Prompting with images is incompatible with system messages.") }}
{%- endif %}
{%- if not image_ns.has_images %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
    {{- "Cutting Knowledge Date: December 2023\\n" }}
    {{- "Today Date: " + date_string + "\\n\\n" }}
    {{- system_message }}
    {{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {% generation %}
        {%- for content in message['content'] %}
            {{- content['text'] }}
        {%- endfor %}
        {{- '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {%- for content in message['content'] %}
            {%- if content['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif content['type'] == 'text' %}
                {{- content['text'] }}
            {%- endif %}
        {%- endfor %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_LAYER = r"model\.language_model\.layers\.\d+\."
_VISION = r"model\.vision_model\.(global_)?transformer\.layers\.\d+\."


class Mllama(Family):
    """Stock `MllamaForConditionalGeneration`, such as meta-llama/Llama-3.2-11B-Vision-Instruct.

    The text holds one token an image; cross-attention layers look at the image's tiles, and keep their
    keys and values in the cache like any other layer. Features are kept after the projector (4,096
    numbers for each of 1,601 patches a tile, against 7,680 before it).

    An image always has 4 tiles, and those beyond its own are kept as well: tokens before the first image
    have nothing of theirs to look at, and stock lets them look at everything then, empty tiles included.
    What they see reaches the answer. For the same reason stock's logits of a prompt depend on what else is
    in its batch, if that has more images; here every group has the logits that it has alone.

    In the published chat template a prompt without an image says today's date: such prompts differ
    from one day to the next.
    """

    model_type = "mllama"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"(self|cross)_attn\.(q|k|v|o)_proj",
        "mlp": _LAYER + r"mlp\.(gate|up|down)_proj",
        "projector": r"model\.multi_modal_projector",
        "vision": _VISION + r"(self_attn\.(q|k|v|o)_proj|mlp\.fc[12])",
    }
    kept_exact = ("lm_head", "vision_model", "multi_modal_projector")
    inputs = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    geometry = ("aspect_ratio_mask",)
    flex = False  # the mask of cross attention is dense

    def head(self, model: Any, ids: Sequence[int], placements: Sequence[Placement]) -> Head:
        """See `Family.head`.

        A second axis says at an image's token how many tiles the image has: later tokens, whose batch
        comes without features, need it to tell them from empty ones.
        """
        num_tiles = iter([int(place.geometry["aspect_ratio_mask"].sum()) for place in placements])
        tiles = tuple(next(num_tiles) if token == model.config.image_token_id else 0 for token in ids)
        return Head((*ids,), ((*range(len(ids)),), tiles), len(ids))

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        stacked = {name: torch.cat([item[name] for item in inputs]) for name in self.inputs}
        found = model.model.vision_model(**stacked).last_hidden_state  # (images, 1, tiles, patches, channels)
        return [{"image": image} for image in model.model.multi_modal_projector(found).flatten(1, 3)]

    def num_image_tokens(self, features: Features) -> None:
        return None

    def logits(
        self,
        model: Any,
        batch: Batch,
        features: Sequence[Features],
        seen: Batch | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """See `Family.logits`.

        The language model is called by itself, because `MllamaModel` cannot be told which images a token
        before the first of its group's may look at.
        """
        model = base_of(model)
        if cache is None and model.config.text_config._attn_implementation == prefix_attention.NAME:
            arguments = self._by_group(model, batch, features)
        else:
            arguments = self._by_row(model, batch, features, batch if seen is None else seen)
        found = model.model.language_model(past_key_values=cache, use_cache=cache is not None, **arguments)
        hidden = found.last_hidden_state.view(*batch.predicts.shape, -1)
        logits: torch.Tensor = model.lm_head(hidden[batch.predicts])
        return logits

    def _by_row(self, model: Any, new: Batch, features: Sequence[Features], seen: Batch) -> dict[str, Any]:
        """Return the language model's arguments with dense masks."""
        num_seen = seen.input_ids.shape[1]
        begins = num_seen == new.input_ids.shape[1]  # later, keys and values of images are in the cache
        images = _Images.of(model, seen)
        shown = images.shown_to(new, num_seen)
        return {
            "input_ids": new.input_ids,
            "position_ids": self.position_ids(new),
            "attention_mask": self.mask(model, new, seen),
            "cross_attention_states": images.states(model, features) if begins else None,
            "cross_attention_mask": images.mask(new, shown),
            "full_text_row_masked_out_mask": shown.any(dim=-1)[:, None, :, None].to(model.dtype),
        }

    def _by_group(self, model: Any, batch: Batch, features: Sequence[Features]) -> dict[str, Any]:
        """Return them for `prefix_attention`: all tokens in one row, a mask for each group's images."""
        by_group = ByGroup.of(batch)
        groups = by_group.of_batch(batch)
        images = _Images.of(model, groups)
        shown = images.shown_to(groups, groups.input_ids.shape[1])
        is_shown = shown.any(dim=-1).flatten()[by_group.back]
        return prefix_attention.arguments(batch) | {
            "by_group": by_group,
            "input_ids": batch.input_ids.view(1, -1),
            "position_ids": self.position_ids(batch).reshape(1, -1),
            "cross_attention_states": images.states(model, features),
            "cross_attention_mask": images.mask(groups, shown),
            "full_text_row_masked_out_mask": is_shown[None, None, :, None].to(model.dtype),
        }

    def tiny(self, folder: Path, seed: int = 0) -> None:
        control = ("begin_of_text", "end_of_text", "finetune_right_pad_id", "eot_id")
        headers = ("start_header_id", "end_header_id")
        names = {"bos": "begin_of_text", "eos": "eot_id", "pad": "finetune_right_pad_id"}
        tokenizer = tiny_tokenizer(
            special=[f"<|{name}|>" for name in control + headers],
            named={"image_token": "<|image|>"},  # comes last: an embedding beyond those that can be predicted
            **{f"{role}_token": f"<|{name}|>" for role, name in names.items()},
        )
        ids: dict[str, Any] = token_ids(tokenizer)
        vision = MllamaVisionConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_global_layers=1,
            attention_heads=2,
            intermediate_size=32,
            vision_output_dim=48,  # the last layer's hidden states and the two intermediate ones
            intermediate_layers_indices=[0, 1],
            image_size=28,
            patch_size=14,
        )
        text = MllamaTextConfig(
            vocab_size=len(tokenizer) - 1,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=8192,
            cross_attention_layers=[1],
            initializer_range=0.3,  # so that answers depend on image and question
            **ids,
        )
        config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=len(tokenizer) - 1)
        image_processor = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)
        processor = MllamaProcessor(image_processor, tokenizer, chat_template=_TEMPLATE)
        save_random(_with_open_gates, config, processor, folder, seed)


@dataclass(frozen=True)
class _Images:
    """Where the images of each row stand; all tensors of shape (rows, most images of a row).

    Attributes:
        exists: Whether the row has so many images.
        groups: The image's group.
        starts: The first token that may look at it: its own.
        ends: The first token after those that may.
        num_tiles: How many of its tiles hold something.
        max_tiles: How many it is given.
        num_patches: Of a tile.
    """

    exists: torch.Tensor
    groups: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor
    num_tiles: torch.Tensor
    max_tiles: int
    num_patches: int

    @classmethod
    def of(cls, model: Any, seen: Batch) -> _Images:
        """Find them in the layout of all tokens so far.

        Tokens up to the next image of the group may look at an image; images that stand side by side are
        one in this. Source: `get_cross_attention_token_mask` of Transformers' processing_mllama.py.
        """
        tokens = (seen.input_ids == model.config.image_token_id) & (seen.segments == HEAD)
        counts = tokens.sum(dim=1, keepdim=True)
        order = tokens.int().argsort(dim=1, descending=True, stable=True)
        starts = order[:, : int(counts.max())]
        exists = torch.arange(starts.shape[1], device=starts.device) < counts
        groups = seen.groups.gather(1, starts)
        ends = torch.full_like(starts, seen.input_ids.shape[1])
        for image in range(starts.shape[1] - 2, -1, -1):
            after = starts[:, image + 1]
            until_next = torch.where(after == starts[:, image] + 1, ends[:, image + 1], after)
            last = ~exists[:, image + 1] | (groups[:, image + 1] != groups[:, image])
            ends[:, image] = torch.where(last, ends[:, image], until_next)
        vision = model.model.vision_model
        num_tiles = seen.position_ids[1].gather(1, starts)
        return cls(exists, groups, starts, ends, num_tiles, vision.max_num_tiles, vision.num_patches)

    def states(self, model: Any, features: Sequence[Features]) -> torch.Tensor:
        """Return what cross attention looks at, shape (rows, 1 + images * tiles * patches, channels).

        The first state is zero, and so are its keys and values: looking at it alone changes nothing.
        """
        if not features:
            channels = model.config.text_config.hidden_size
            return torch.zeros(len(self.exists), 1, channels, device=model.device, dtype=model.dtype)
        of_image = iter(features)
        first = features[0]["image"]
        zero, nothing = first.new_zeros(1, first.shape[1]), torch.zeros_like(first)
        pieces = []
        for row in self.exists.tolist():
            pieces += [zero, *(next(of_image)["image"] if exists else nothing for exists in row)]
        return torch.cat(pieces).view(len(self.exists), -1, first.shape[1])

    def shown_to(self, new: Batch, num_seen: int) -> torch.Tensor:
        """Return which images `new` tokens, the last of `num_seen`, may look at.

        Returns:
            Bool, shape (rows, new tokens, images).
        """
        places = torch.arange(num_seen - new.input_ids.shape[1], num_seen, device=new.input_ids.device)
        since = places[None, :, None] >= self.starts[:, None]
        until = places[None, :, None] < self.ends[:, None]
        return self._of_group(new) & since & until

    def mask(self, new: Batch, shown: torch.Tensor) -> torch.Tensor:
        """Return at which of `states` each token looks, bool, shape (rows, 1, new tokens, states).

        Tokens that are shown no image look at everything in their group, empty tiles included, as in
        stock; those whose group has no image, and padding, at the first state.
        """
        filled = torch.arange(self.max_tiles, device=shown.device) < self.num_tiles[..., None]
        before = self._of_group(new) & ~shown.any(dim=-1, keepdim=True)
        tiles = ((shown[..., None] & filled[:, None]) | before[..., None]).flatten(2)
        nothing = ~tiles.any(dim=-1, keepdim=True)
        return torch.cat([nothing, tiles.repeat_interleave(self.num_patches, dim=-1)], dim=-1)[:, None]

    def _of_group(self, new: Batch) -> torch.Tensor:
        return (new.groups[:, :, None] == self.groups[:, None]) & self.exists[:, None]


def _with_open_gates(config: MllamaConfig) -> MllamaForConditionalGeneration:
    """Return a random model in which images count: stock begins with all gates shut."""
    model = MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            torch.nn.init.constant_(parameter, 1.0)
    return model
