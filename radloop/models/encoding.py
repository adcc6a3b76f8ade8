"""Several images through the vision tower at a time, where that changes nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from PIL import Image

from radloop.models.family import Features, Inputs
from radloop.models.loading import Loaded

_SMALL_TOKENS = 128  # an image of more of them keeps the cores of a CPU busy by itself


class Encoder:
    """Encodes images, so that on a CPU each comes out the same to the last bit in any company.

    Else what is kept of an image would depend on which others were kept already. A kernel may sum up in
    another order where it gets more rows, so images of new shapes are encoded alone as well, and in such
    company later only if that was the same.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._are_same: dict[Hashable, bool] = {}  # by the shapes of the images

    def __call__(self, images: Sequence[Image.Image]) -> list[Features]:
        """Return the features of a few RGB images; see `Loaded.encode`."""
        loaded = self._loaded
        inputs = loaded.read(images)
        if len(images) == 1 or torch.cuda.is_available():
            return loaded.encode(images, inputs)
        shapes = tuple(map(_shape, inputs))
        if self._are_same.get(shapes):
            return loaded.encode(images, inputs)
        alone = self._alone(images, inputs)
        if shapes not in self._are_same:
            is_small = all(_is_small(tensor) for tensor in alone[0].values())
            self._are_same[shapes] = is_small and _equal(loaded.encode(images, inputs), alone)
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


def _is_small(features: torch.Tensor) -> bool:
    # A simulation has shapes only, and nothing to compare.
    return not features.is_meta and features.shape[:-1].numel() <= _SMALL_TOKENS


def _equal(ours: Sequence[Features], others: Sequence[Features]) -> bool:
    return all(
        torch.equal(one[name], other[name]) for one, other in zip(ours, others, strict=True) for name in other
    )
