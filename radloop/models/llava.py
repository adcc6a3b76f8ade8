"""The LLaVA family: a ViT, a two-layer projector, and a Llama-like language model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

_LAYER = r"model\.language_model\.layers\.\d+\."


class Llava:
    """Stock `LlavaForConditionalGeneration`: every image becomes the same number of tokens."""

    model_type = "llava"
    targets: ClassVar[dict[str, str]] = {
        "attention": _LAYER + r"self_attn\.(q|k|v|o)_proj",
        "mlp": _LAYER + r"mlp\.(gate|up|down)_proj",
        "projector": r"model\.multi_modal_projector\.linear_[12]",
    }

    def pixels(self, processor: Any, images: list[Image.Image]) -> torch.Tensor:
        """Return the processor's pixel values of RGB images, shape (images, 3, height, width)."""
        pixels: torch.Tensor = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return pixels

    def encode(self, model: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the model itself hands to its projector, shape (images, tokens, channels).

        Which hidden states these are depends on the model's feature layer and select strategy, and
        getting it wrong is silent; so they are caught on their way rather than computed again here.
        """
        caught: list[torch.Tensor] = []
        hook = model.model.multi_modal_projector.register_forward_pre_hook(
            lambda _module, inputs: caught.append(inputs[0])
        )
        try:
            model.get_image_features(pixel_values=pixels, return_dict=True)
        finally:
            hook.remove()
        return caught[0]

    def image_inputs(self, model: Any, features: torch.Tensor) -> dict[str, Any]:
        """Project `encode`'s features and wrap them as the model's forward takes them."""
        projected = model.model.multi_modal_projector(features)
        outputs: Any = {"pooler_output": list(projected)}  # a list, as get_image_features gives it
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(**outputs)}}
