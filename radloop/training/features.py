"""The frozen vision layers' features, computed once an image and reused in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil
import torch
from PIL import Image

from radloop.models.loading import Loaded

_SHARE_OF_FREE_MEMORY = 0.5


class ImageFeatures:
    """Vision features by image id, each computed when first asked for, in batches.

    They are what the vision layers give without any randomness, so they hold only as long as the
    images are not augmented and those layers stay frozen. Features that would take more than half
    of the free memory are computed anew each time instead.
    """

    def __init__(self, loaded: Loaded, image: Callable[[str], Image.Image]) -> None:
        self._loaded = loaded
        self._image = image
        self._kept: dict[str, torch.Tensor] = {}
        self._room_bytes = int(psutil.virtual_memory().available * _SHARE_OF_FREE_MEMORY)

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Return the features of these images, shape (images, tokens, channels), on the model's device."""
        new = list(dict.fromkeys(name for name in image_ids if name not in self._kept))
        found: dict[str, torch.Tensor] = {}
        if new:
            encoded = self._loaded.encode([self._image(name) for name in new]).cpu()
            found = dict(zip(new, encoded, strict=True))
            if encoded.nbytes <= self._room_bytes:
                self._room_bytes -= encoded.nbytes
                self._kept |= found
        stacked = torch.stack([found[name] if name in found else self._kept[name] for name in image_ids])
        return stacked.to(self._loaded.device)
