"""Several images through the vision tower at a time, where that changes nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from PIL import Image

from radloop.models.family import Features, Inputs
from radloop.models.loading import Loaded

_BUSY = 300_000  # numbers of features: a batch with more of them is no faster on a CPU than its images alone


class Encoder:
    """Encodes images, so that on a CPU each comes out the same to the last bit in any company.

    Else what is kept of an image would depend on which others were kept already. A kernel may sum up in
    another order where it gets more rows, so images of new shapes are encoded alone as well, and in such
    company later only if that was the same.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._most: int | None = None  # images in one batch; known after the first ones
        self._are_same: dict[Hashable, bool] = {}  # by the shapes of the images

    def __call__(self, images: Sequence[Image.Image]) -> list[Features]:
        """Return the features of a few RGB images; see `Loaded.encode`."""
        inputs = self._loaded.read(images)
        if len(images) == 1 or torch.cuda.is_available():
            return self._loaded.encode(images, inputs)
        if self._most is None:
            found = self._alone(images, inputs)
            self._most = max(1, _BUSY // max(map(_size, found)))
            return found
        starts = range(0, len(images), self._most)
        parts = [slice(start, start + self._most) for start in starts]
        return [features for part in parts for features in self._together(images[part], inputs[part])]

    def _together(self, images: Sequence[Image.Image], inputs: Sequence[Inputs]) -> list[Features]:
        shapes = tuple(map(_shape, inputs))
        if len(images) == 1 or self._are_same.get(shapes):
            return self._loaded.encode(images, inputs)
        alone = self._alone(images, inputs)
        if shapes not in self._are_same:
            self._are_same[shapes] = _equal(self._loaded.encode(images, inputs), alone)
        return alone

    def _alone(self, images: Sequence[Image.Image], inputs: Sequence[Inputs]) -> list[Features]:
        pairs = zip(images, inputs, strict=True)
        return [self._loaded.encode([image], [read])[0] for image, read in pairs]


def _shape(inputs: Inputs) -> Hashable:
    """Return what the shapes of all tensors follow from: those of the input, and numbers such as of tiles."""
    return tuple(
        (name, tuple(tensor.shape), () if tensor.is_floating_point() else tuple(tensor.flatten().tolist()))
        for name, tensor in inputs.items()
    )


def _size(features: Features) -> int:
    return sum(tensor.numel() for tensor in features.values())


def _equal(ours: Sequence[Features], others: Sequence[Features]) -> bool:
    # A simulation has shapes only, and nothing to compare.
    return all(
        not one[name].is_meta and torch.equal(one[name], other[name])
        for one, other in zip(ours, others, strict=True)
        for name in other
    )
