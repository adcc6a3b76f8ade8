"""BLIP's captioning model: a BERT that writes, and looks at the image by cross attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from radloop.errors import ModelError
from radloop.models.family import Family, Features, Inputs, Placement, Turn, base_of
from radloop.models.packing import PADDING, Batch, Head, block_mask
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer

_LAYER = r"text_decoder\.bert\.encoder\.layer\.\d+\."
_IMAGE = "<image>"  # where an image stands in a rendered prompt; no token


class Blip(Family):
    """Stock `BlipForConditionalGeneration`, such as Salesforce/blip-image-captioning-large.

    It continues a caption: the prompt is the question, and the answer is what comes after it. There is no
    chat template, and exactly one image a question. As in stock `generate`, a prompt begins with the
    decoder's begin token in place of the tokenizer's, and the separator, which the tokenizer puts at the
    end of a prompt, ends the answer. All that questions share is that begin token and the keys and values
    of the image, which most of the work goes into.

    The loss is cross entropy of the answer, as for every family; the one that stock makes of `labels` takes
    in the question, and smooths by the config's `label_smoothing`.

    The layers before the vocabulary, `text_decoder.cls`, are not for LoRA: their weights are tied.
    """

    model_type = "blip"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"(cross)?attention\.(self\.(query|key|value)|output\.dense)",
        "mlp": _LAYER + r"(intermediate|output)\.dense",
        "vision": r"vision_model\.encoder\.layers\.\d+\.(self_attn\.(qkv|projection)|mlp\.fc[12])",
    }
    upstream = frozenset({"vision"})
    kept_exact = ("cls", "vision_model")
    attention = packed_attention = "eager"  # has no other; takes 4-D masks as numbers to add
    flex = False

    def require_template(self, processor: Any) -> None:
        """Accept any processor: `render` needs no template."""

    def placeholder(self, processor: Any) -> str:
        return _IMAGE

    def image_token_id(self, processor: Any) -> int:
        return -1  # there is none

    def render(self, processor: Any, turns: list[Turn], ask: bool) -> str:
        """Return question and answer, if there is one.

        Raises:
            ModelError: There is not exactly one image.
        """
        parts = [part for turn in turns for part in turn["content"]]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        if len(parts) - len(texts) != 1:
            raise ModelError(
                f"base model: got a question about {len(parts) - len(texts)} images, but BLIP takes exactly "
                "one; leave such samples out, or choose another model.family"
            )
        return _IMAGE + " ".join(texts)

    def tokenize(self, processor: Any, texts: Sequence[str]) -> list[list[int]]:
        """See `Family.tokenize`; without the separator at the end."""
        return [ids[:-1] for ids in processor.tokenizer(list(texts))["input_ids"]]

    def end_ids(self, processor: Any, model: Any) -> tuple[int, ...]:
        """Return the separator's id, as `generate` does: the config's eos token means nothing."""
        return (model.config.text_config.sep_token_id,)

    def placement(self, processor: Any, width: int, height: int) -> Placement:
        return Placement("", ())

    def head(self, model: Any, ids: Sequence[int], placements: Sequence[Placement]) -> Head:
        return Head.counted([model.config.text_config.bos_token_id])

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        pixels = torch.cat([item["pixel_values"] for item in inputs])
        return [{"image": image} for image in model.vision_model(pixel_values=pixels).last_hidden_state]

    def num_image_tokens(self, features: Features) -> None:
        return None

    def mask(self, model: Any, new: Batch, seen: Batch) -> torch.Tensor:
        """See `Family.mask`; as what is added to the scores."""
        mask = block_mask(new, seen)
        return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)

    def logits(
        self,
        model: Any,
        batch: Batch,
        features: Sequence[Features],
        seen: Batch | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """See `Family.logits`; `cache` has every layer twice: those of the text, then those of images.

        Stock's cross attention takes no mask, so every group is given a row of its own.
        """
        model = base_of(model)
        text = model.config.text_config
        if seen is None:
            batch = seen = _a_row_a_group(batch)
        caches: Any = None if cache is None else _split(cache, text.num_hidden_layers)
        if features:
            states = torch.stack([item["image"] for item in features])
        else:  # keys and values are in the cache, and the states are not looked at
            shape = (len(batch.input_ids), 0, text.encoder_hidden_size)
            states = torch.empty(shape, dtype=model.dtype, device=model.device)
        logits: torch.Tensor = model.text_decoder(
            input_ids=batch.input_ids,
            attention_mask=self.mask(model, batch, seen),
            position_ids=self.position_ids(batch),
            encoder_hidden_states=states,
            past_key_values=caches,
            use_cache=cache is not None,
            logits_to_keep=batch.predicts,
        ).logits
        if cache is not None:
            cache.layers = caches.self_attention_cache.layers + caches.cross_attention_cache.layers
        return logits

    def tiny(self, folder: Path, seed: int = 0) -> None:
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        options: dict[str, Any] = names | {"bos_token": None, "eos_token": None}
        tokenizer = tiny_tokenizer(special=list(names.values()), **options)
        pad, begin, end = (tokenizer.convert_tokens_to_ids(token) for token in names.values())
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", begin), ("[SEP]", end)]
        )
        layers = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = BlipConfig(
            text_config={
                "vocab_size": len(tokenizer) + 2,
                "hidden_size": 32,
                "encoder_hidden_size": 16,
                "max_position_embeddings": 1024,
                "initializer_range": 0.3,  # so that answers depend on image and question
                "bos_token_id": len(tokenizer),  # beyond what the tokenizer knows, as published
                "sep_token_id": end,
                "pad_token_id": pad,
                **layers,
            },
            vision_config={"hidden_size": 16, "image_size": 48, "patch_size": 12, **layers},
        )
        processor = BlipProcessor(BlipImageProcessorPil(size={"height": 48, "width": 48}), tokenizer)
        save_random(BlipForConditionalGeneration, config, processor, folder, seed)


def _a_row_a_group(batch: Batch) -> Batch:
    """Return the layout with each group in a row of its own; what predicts stays in order."""
    groups = torch.arange(int(batch.groups.max()) + 1, device=batch.groups.device)
    in_group = batch.groups[:, None] == groups[:, None]  # (rows, groups, tokens)
    rows = in_group.any(dim=-1).nonzero()[:, 0]
    in_group = in_group[in_group.any(dim=-1)]
    lengths = in_group.sum(dim=1, keepdim=True)
    places = in_group.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    exists = torch.arange(places.shape[1], device=places.device) < lengths
    return replace(
        batch,
        input_ids=batch.input_ids[rows].gather(1, places),
        groups=torch.where(exists, 0, PADDING),
        segments=batch.segments[rows].gather(1, places).where(exists, PADDING),
        position_ids=torch.stack([axis[rows].gather(1, places) * exists for axis in batch.position_ids]),
        predicts=batch.predicts[rows].gather(1, places) & exists,
    )


def _split(cache: Cache, num_layers: int) -> EncoderDecoderCache:
    """Return a cache of both kinds of attention over the layers of one of all."""
    own, cross = DynamicCache(), DynamicCache()
    own.layers, cross.layers = cache.layers[:num_layers], cache.layers[num_layers:]
    return EncoderDecoderCache(own, cross)
