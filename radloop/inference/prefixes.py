"""Keys and values of prompt heads with their images, kept for the next question about the images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import DynamicCache

from radloop.data.imaging import pixel_hash
from radloop.inference.decoding import layout_of_heads
from radloop.models.feature_cache import FeatureCache
from radloop.models.loading import Loaded
from radloop.models.packing import Group, Head

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, each (1, heads, tokens, channels)
Key = tuple[tuple[str, ...], Head]  # hashes of the images, and the head

_KEPT_BYTES = 256 * 2**20


class Prefixes:
    """Computes prefixes in batches and keeps the most recently used, 256 MiB of them, at least one.

    What is computed once per image is all that answering shares between questions: image
    processing, vision layers, projector, and the language model over the head.
    """

    def __init__(self, loaded: Loaded, features: FeatureCache) -> None:
        self._loaded = loaded
        self._features = features
        self._kept: OrderedDict[Key, Layers] = OrderedDict()
        self._kept_bytes = 0

    def get(self, images: Sequence[Sequence[Image.Image]], groups: Sequence[Group]) -> DynamicCache:
        """Return the cache of the groups' heads, which are of one length, a row a group.

        Args:
            images: RGB images of each group.
            groups: Whose heads are wanted.
        """
        keys = [
            (tuple(map(pixel_hash, of_group)), group.head)
            for of_group, group in zip(images, groups, strict=True)
        ]
        new = {key: place for place, key in enumerate(keys) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if new:
            shown = [images[place] for place in new.values()]
            computed = self._compute(list(new), shown, [groups[place] for place in new.values()])
            found |= dict(zip(new, computed, strict=True))
        for key in found:
            self._keep(key, found[key])
        per_layer = zip(*(found[key] for key in keys), strict=True)
        return DynamicCache(
            [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in per_layer]
        )

    def _compute(
        self, keys: Sequence[Key], images: Sequence[Sequence[Image.Image]], groups: Sequence[Group]
    ) -> list[Layers]:
        loaded = self._loaded
        flat = [image for of_group in images for image in of_group]
        hashes = [pixel_hash for of_group, _ in keys for pixel_hash in of_group]
        features = self._features(hashes, flat.__getitem__)
        cache = DynamicCache()
        loaded.family.logits(loaded.model, layout_of_heads(groups, loaded.device), features, cache=cache)
        # Copies, since a view of one image would keep the whole batch in memory.
        return [
            [(k[row : row + 1].clone(), v[row : row + 1].clone()) for k, v, *_ in cache]
            for row in range(len(groups))
        ]

    def _keep(self, key: Key, layers: Layers) -> None:
        if key not in self._kept:
            self._kept[key] = layers
            self._kept_bytes += _num_bytes(layers)
        self._kept.move_to_end(key)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _num_bytes(self._kept.popitem(last=False)[1])


def _num_bytes(layers: Layers) -> int:
    return sum(k.nbytes + v.nbytes for k, v in layers)
