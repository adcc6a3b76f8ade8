"""Fuyu: patches of the image go into the language model as they are, through one linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from tokenizers import AddedToken, Regex, normalizers
from transformers import FuyuConfig, FuyuForCausalLM, FuyuProcessor, PersimmonConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil
from transformers.models.fuyu.processing_fuyu import BEGINNING_OF_ANSWER_STRING

from radloop.errors import ConfigError, ModelError
from radloop.models.family import Family, Features, Inputs, Turn
from radloop.models.packing import Batch
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer, token_ids

_LAYER = r"model\.language_model\.layers\.\d+\."
_BEGIN_OF_TEXT = "<s>"  # between image and question


class Fuyu(Family):
    """Stock `FuyuForCausalLM`, such as adept/fuyu-8b: a token for every patch of 30 x 30 pixels.

    A prompt is the image, the question, a line's end and the token that begins an answer. There is no chat
    template, and exactly one image a question. Features are the patches themselves: 2,700 numbers each,
    4,096 after the linear layer; no layer of the model makes them, so they can be kept whatever is trained.

    The tokenizer's end token closes an answer, as in pre-training, even where the config names another.
    """

    model_type = "fuyu"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"self_attn\.(query_key_value|dense)",
        "mlp": _LAYER + r"mlp\.dense_(h_to_4h|4h_to_h)",
        "projector": r"model\.vision_embed_tokens",
    }
    upstream = frozenset()
    kept_exact = ("lm_head", "vision_embed_tokens")

    def load_processor(self, folder: Path) -> Any:
        """See `Family.load_processor`; with an image processor that works without torchvision."""
        processor = super().load_processor(folder)
        # Under its other name for the patches, which it is to drop, it warns.
        processor._process_images = partial(processor._process_images, return_legacy_image_output=False)
        if isinstance(processor.image_processor, FuyuImageProcessorPil):
            processor.image_processor = _ImageProcessor.from_dict(processor.image_processor.to_dict())
        return processor

    def limit_pixels(self, processor: Any, max_pixels: int) -> None:
        patch = processor.image_processor.patch_size.height
        side = int(max_pixels**0.5) // patch * patch
        if not side:
            raise ConfigError(
                f"max_pixels: got {max_pixels}, but a patch has {patch} x {patch} pixels already"
            )
        processor.image_processor.size = {"height": side, "width": side}

    def require_template(self, processor: Any) -> None:
        """Accept any processor: `render` needs no template."""

    def controls(self, processor: Any) -> tuple[str, ...]:
        """See `Family.controls`; Fuyu's tokenizer does not call these special."""
        bytes_and_marks = (f"<0x{byte:02X}>" for byte in range(256))  # among them the boxes' and the answer's
        return (self.placeholder(processor), "|NEWLINE|", _BEGIN_OF_TEXT, *bytes_and_marks)

    def render(self, processor: Any, turns: list[Turn], ask: bool) -> str:
        """Return the prompt, and the answer if there is one.

        Raises:
            ModelError: There is not exactly one image.
        """
        kinds = [part["type"] for turn in turns for part in turn["content"]]
        if kinds.count("image") != 1:
            raise ModelError(
                f"base model: got a question about {kinds.count('image')} images, but Fuyu takes exactly "
                "one; leave such samples out, or choose another model.family"
            )
        question, *answer = [part["text"] for turn in turns for part in turn["content"] if "text" in part]
        return f"{processor.image_token}{question}\n{BEGINNING_OF_ANSWER_STRING}{''.join(answer)}"

    def tokenize(self, processor: Any, texts: Sequence[str]) -> list[list[int]]:
        """See `Family.tokenize`; image and text apart, without what the tokenizer puts before an image."""
        images, questions = zip(*(text.split(_BEGIN_OF_TEXT, maxsplit=1) for text in texts), strict=True)
        tokenizer = processor.tokenizer
        before = tokenizer([image + _BEGIN_OF_TEXT for image in images], add_special_tokens=False)[
            "input_ids"
        ]
        after = tokenizer(list(questions), add_special_tokens=False)["input_ids"]
        return [image[1:] + question for image, question in zip(before, after, strict=True)]

    def end_ids(self, processor: Any, model: Any) -> tuple[int, ...]:
        return tuple(dict.fromkeys((processor.tokenizer.eos_token_id, *super().end_ids(processor, model))))

    def read(self, processor: Any, image: Image.Image) -> Inputs:
        processed, _ = processor._process_images([image], return_tensors="pt")
        return {"pixel_values": processed["pixel_values"]}

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        return [{"image": item["pixel_values"]} for item in inputs]

    def image_arguments(
        self, model: Any, features: Sequence[Features], new: Batch, seen: Batch
    ) -> dict[str, Any]:
        patches = torch.cat([item["image"] for item in features])[None]
        hidden: Any = {"last_hidden_state": model.model.vision_embed_tokens(patches)}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(**hidden)}}

    def tiny(self, folder: Path, seed: int = 0) -> None:
        names: dict[str, Any] = {"pad_token": "<unk>", "bos_token": "|ENDOFTEXT|", "eos_token": "|ENDOFTEXT|"}
        tokenizer = tiny_tokenizer(special=("<unk>", _BEGIN_OF_TEXT, "|ENDOFTEXT|"), **names)
        # The processor takes it for granted that something stands before an image, and drops it.
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"^(?=\|SPEAKER\|\|)"), " ")
        of_images = ("|SPEAKER|", "|NEWLINE|", BEGINNING_OF_ANSWER_STRING)
        tokenizer.add_tokens([AddedToken(token, normalized=True) for token in of_images])
        ids: dict[str, Any] = token_ids(tokenizer)
        config = FuyuConfig(
            text_config=PersimmonConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=8192,
                initializer_range=0.3,  # so that answers depend on image and question
                **ids,
            ),
            patch_size=10,
            image_token_id=tokenizer.get_vocab()["|SPEAKER|"],
        )
        sizes: dict[str, Any] = {
            "size": {"height": 60, "width": 80},
            "patch_size": {"height": 10, "width": 10},
        }
        processor = FuyuProcessor(FuyuImageProcessorPil(**sizes), tokenizer)
        save_random(FuyuForCausalLM, config, processor, folder, seed)


class _ImageProcessor(FuyuImageProcessorPil):
    """The stock one takes tensors for arrays, and loses the images' axis."""

    def patchify_image(self, image: Any, patch_size: Any = None) -> Any:
        patches = super().patchify_image(image.numpy(), patch_size)
        return torch.from_numpy(patches).reshape(len(image), -1, patches.shape[-1])
