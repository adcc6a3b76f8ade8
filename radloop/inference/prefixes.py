"""Keys and values of prompt heads with their image, kept for the next question about the image."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import DynamicCache

from radloop.models.loading import Loaded

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, each (1, heads, tokens, channels)
Key = tuple[str, tuple[int, ...]]  # hash of the image, token ids of the head

_KEPT_BYTES = 256 * 2**20


class Prefixes:
    """Computes prefixes in batches and keeps the most recently used, 256 MiB of them, at least one.

    What is computed once per image is all that answering shares between questions: image
    processing, vision layers, projector, and the language model over the head.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._kept: OrderedDict[Key, Layers] = OrderedDict()
        self._kept_bytes = 0

    def get(self, images: Sequence[Image.Image], heads: Sequence[tuple[int, ...]]) -> DynamicCache:
        """Return the cache of these images behind heads of one length, one row an image."""
        keys = [(_content_hash(image), head) for image, head in zip(images, heads, strict=True)]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        found |= self._compute(new) if new else {}
        for key in found:
            self._keep(key, found[key])
        per_layer = zip(*(found[key] for key in keys), strict=True)
        return DynamicCache(
            [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in per_layer]
        )

    def _compute(self, new: dict[Key, Image.Image]) -> dict[Key, Layers]:
        loaded = self._loaded
        features = loaded.encode(list(new.values()))
        cache = DynamicCache()
        loaded.model(
            input_ids=torch.tensor([head for _, head in new], device=loaded.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **loaded.family.image_inputs(loaded.base_model, features),
        )
        # Copies, since a view of one image would keep the whole batch in memory.
        return {
            key: [(k[row : row + 1].clone(), v[row : row + 1].clone()) for k, v, *_ in cache]
            for row, key in enumerate(new)
        }

    def _keep(self, key: Key, layers: Layers) -> None:
        if key not in self._kept:
            self._kept[key] = layers
            self._kept_bytes += _num_bytes(layers)
        self._kept.move_to_end(key)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _num_bytes(self._kept.popitem(last=False)[1])


def _num_bytes(layers: Layers) -> int:
    return sum(k.nbytes + v.nbytes for k, v in layers)


def _content_hash(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
