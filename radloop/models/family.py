"""What training and inference need to know about a kind of model, beyond stock Transformers.

`Family` does what decoder-only models have in common: image tokens in the text, features put in
their places, one causal language model over all. A family is a class in a file of its own that
states what is particular to it, and a line in `radloop.models.REGISTRY`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from radloop.errors import ConfigError, ModelError, unknown
from radloop.models import prefix_attention
from radloop.models.packing import Batch, Head, block_mask, flex_mask

Inputs = dict[str, torch.Tensor]  # what the processor makes of one image, first dimension 1
Features = dict[str, torch.Tensor]  # what frozen layers make of it; this is what caches keep
Turn = dict[str, Any]  # of a chat template: role, and content as a list of parts


@dataclass(frozen=True)
class Placement:
    """How an image of one size stands in a prompt.

    Attributes:
        text: What takes the place of the placeholder, each run of image tokens written as one.
        runs: Length of each of those runs.
        geometry: What positions depend on beside the tokens, such as Qwen's `image_grid_thw`.
    """

    text: str
    runs: tuple[int, ...]
    geometry: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Family(ABC):
    """One kind of model.

    Attributes:
        model_type: As in the model's config.json.
        targets: Group of layers that LoRA may train, to a regular expression over full module names.
        upstream: Groups that make the features: while one of them is trained, nothing can be cached.
        precisions: In which the base may be loaded, see `radloop.config.Precision`.
        kept_exact: Module names (parts of them) that 4 and 8 bit leave alone.
        attention: Transformers' implementation to load it with; must take the 4-D masks of shared prefixes.
        packed_attention: The one to train it with on a CPU, where it has no dropout of attention.
        flex: Whether it may be trained with FlexAttention, which drops or misreads dense masks: only if
            `mask` is the one mask of its language model.
        inputs: Names of the processor's image tensors that the model reads.
        geometry: Which of them `head_positions` needs.
    """

    model_type: ClassVar[str]
    targets: ClassVar[Mapping[str, str]]
    upstream: ClassVar[frozenset[str]] = frozenset({"vision", "projector"})
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16", "int8", "nf4")
    kept_exact: ClassVar[tuple[str, ...]] = ("lm_head",)
    attention: ClassVar[str] = "sdpa"
    packed_attention: ClassVar[str] = prefix_attention.NAME
    flex: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    geometry: ClassVar[tuple[str, ...]] = ()

    def pattern(self, target: str) -> str:
        """Return a regular expression over the full names of the layers that LoRA is to train.

        Args:
            target: A group of `targets`, or 'group.layer': the layers of that last name in the group.

        Raises:
            ConfigError: There is no such group; the message lists the groups.
        """
        group, _, layer = target.partition(".")
        if group not in self.targets:
            raise ConfigError(unknown("target", target, self.targets))
        if target == group:
            return self.targets[group]
        return rf"(?=(?:{self.targets[group]})$).*\.{re.escape(layer)}"

    def require_config(self, config: Mapping[str, Any]) -> None:  # noqa: B027 - most support all
        """Raise a ModelError if the model of this config.json is of a kind that is not supported."""

    # Prompt

    def load_processor(self, folder: Path) -> Any:
        """Return the processor that a folder holds; nothing is fetched or executed."""
        processors: Any = transformers.AutoProcessor
        return processors.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def limit_pixels(self, processor: Any, max_pixels: int) -> None:
        """Let the processor make images of no more than so many pixels; larger ones are scaled down.

        Raises:
            ConfigError: The family cannot.
        """
        raise ConfigError(
            f"max_pixels: got {max_pixels}, but family {self.model_type} scales images to sizes of its own; "
            "use preprocess.image_size"
        )

    def require_template(self, processor: Any) -> None:
        """Raise a ModelError if the processor cannot write prompts."""
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                "base model: its processor has no chat template; add chat_template.jinja to its folder"
            )

    def placeholder(self, processor: Any) -> str:
        """Return what the chat template writes for an image."""
        text: str = processor.image_token
        return text

    def controls(self, processor: Any) -> tuple[str, ...]:
        """Return what has a meaning of its own in a prompt, beside the tokenizer's special tokens."""
        return (self.placeholder(processor),)

    def image_token_id(self, processor: Any) -> int:
        """Return the id of the token that stands for a piece of an image."""
        token_id: int = processor.image_token_id
        return token_id

    def render(self, processor: Any, turns: list[Turn], ask: bool) -> str:
        """Return the text of a conversation by the model's template, ready to be continued if `ask`.

        Raises:
            ModelError: The template fails.
        """
        try:
            text: str = processor.apply_chat_template(turns, add_generation_prompt=ask)
        except Exception as error:  # a template is a program, which can raise anything
            raise ModelError(
                f"base model: its chat_template.jinja fails on a question about images: "
                f"{type(error).__name__}: {' '.join(str(error).split())}; mend it, or take that of the "
                "published checkpoint"
            ) from error
        return text

    def tokenize(self, processor: Any, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts that all begin as the template begins them."""
        tokenizer = processor.tokenizer
        # As the processor does: the template may already have written the begin token.
        written = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=not written)["input_ids"]
        return ids

    def end_ids(self, processor: Any, model: Any) -> tuple[int, ...]:
        """Return the ids of tokens that end an answer, the usual one first; none if no config names any."""
        ends = model.generation_config.eos_token_id
        ends = processor.tokenizer.eos_token_id if ends is None else ends
        return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    def placement(self, processor: Any, width: int, height: int) -> Placement:
        """Return how an RGB image of this size in pixels stands in a prompt.

        A processor decides it by the size alone, so a blank image tells.
        """
        blank = Image.new("RGB", (width, height))
        processed, (text,) = processor._process_images([blank], **_images_kwargs(processor))
        token = re.escape(self.image_token(processor))
        runs = [len(run.group()) for run in re.finditer(f"(?:{token})+", text)]
        length = len(self.image_token(processor))
        return Placement(
            re.sub(f"(?:{token})+", self.image_token(processor).replace("\\", r"\\"), text),
            tuple(run // length for run in runs),
            {name: processed[name] for name in self.geometry},
        )

    def image_token(self, processor: Any) -> str:
        """Return the text of `image_token_id`."""
        text: str = processor.tokenizer.convert_ids_to_tokens(self.image_token_id(processor))
        return text

    def head(self, model: Any, ids: Sequence[int], placements: Sequence[Placement]) -> Head:
        """Return a head's tokens with their positions; `ids` end with the last image token."""
        return Head.counted(ids)

    # Images

    def read(self, processor: Any, image: Image.Image) -> Inputs:
        """Return what the processor makes of one RGB image."""
        processed = processor.image_processor([image], **_images_kwargs(processor))
        return {name: processed[name] for name in self.inputs}

    @abstractmethod
    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        """Return the features of images, each with what the model itself would have used.

        Differentiable, so that layers of `upstream` can be trained without a cache.
        """

    def num_image_tokens(self, features: Features) -> int | None:
        """Return how many image tokens the features fill; None if the model has no such tokens."""
        return len(features["image"])

    def image_arguments(
        self, model: Any, features: Sequence[Features], new: Batch, seen: Batch
    ) -> dict[str, Any]:
        """Return the arguments of the model's forward that put the features in their places."""
        pooled: Any = {"pooler_output": [item["image"] for item in features]}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(**pooled)}}

    # Language model

    def mask(self, model: Any, new: Batch, seen: Batch) -> Any:
        """Return the model's `attention_mask` for `new` tokens after those before them in `seen`."""
        flex = model.config.get_text_config()._attn_implementation == "flex_attention"
        return flex_mask(new, seen) if flex else block_mask(new, seen)

    def max_tokens(self, model: Any) -> int:
        """Return the longest prompt with answer that the model takes.

        `mask` knows no sliding window, which a shorter one never notices.
        """
        text = model.config.get_text_config()
        longest: int = text.max_position_embeddings
        return min(longest, getattr(text, "sliding_window", None) or longest)

    def position_ids(self, batch: Batch) -> torch.Tensor:
        """Return the model's `position_ids`; shape (rows, tokens) here."""
        return batch.position_ids[0]

    def logits(
        self,
        model: Any,
        batch: Batch,
        features: Sequence[Features],
        seen: Batch | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Return the logits where `batch.predicts`, float, shape (predicting tokens, vocabulary).

        Args:
            model: The model, or a PeftModel around it.
            batch: The new tokens.
            features: Of the images whose tokens are among them, row by row, group by group.
            seen: Layout of all tokens so far, the new ones last; None if there are no earlier ones.
            cache: Keys and values of the earlier ones; grows.
        """
        base, seen = base_of(model), batch if seen is None else seen
        arguments = self.image_arguments(base, features, batch, seen) if features else {}
        if cache is None and base.config.get_text_config()._attn_implementation == prefix_attention.NAME:
            attention = prefix_attention.arguments(batch)
        else:
            attention = {"attention_mask": self.mask(base, batch, seen)}
        logits: torch.Tensor = model(
            input_ids=batch.input_ids,
            position_ids=self.position_ids(batch),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=batch.predicts,
            **attention,
            **arguments,
        ).logits
        return logits

    # Tests

    @abstractmethod
    def tiny(self, folder: Path, seed: int = 0) -> None:
        """Write a random checkpoint of the same architecture into `folder`, with its processor, offline."""


def _images_kwargs(processor: Any) -> dict[str, Any]:
    """Return what the processor itself hands its image processor: some override the latter's settings."""
    merged = processor._merge_kwargs(
        tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt"
    )
    kwargs: dict[str, Any] = merged["images_kwargs"]
    return kwargs


@contextmanager
def caught_inputs(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list that gets the first argument of each call of `module`.

    What a projector gets depends on the model's feature layer and select strategy, and getting it wrong
    is silent; so it is caught on its way rather than computed again here.
    """
    caught: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    try:
        yield caught
    finally:
        hook.remove()


def base_of(model: Any) -> Any:
    """Return the Transformers model itself, with or without LoRA layers in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
