"""Several images through the vision tower at a time, where that changes nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from PIL import Image

from radloop.models.family import Features, Inputs
from radloop.models.loading import Loaded

# Numbers of features: on a CPU a batch with more of them is no faster than several with fewer.
_BUSY = 600_000


class Encoder:
    """Encodes images, so that on a CPU each comes out the same to the last bit in any company.

    Else what is kept of an image would depend on which others were kept already. A kernel may sum up in
    another order where it gets more rows, so images of new shapes are encoded alone as well, and in such
    company later only if that was the same.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._sizes: dict[Hashable, int] = {}  # numbers of features, by the shape of the image
        self._are_same: dict[Hashable, bool] = {}  # by the shapes of the images

    def __call__(self, images: Sequence[Image.Image]) -> list[Features]:
        """Return the features of a few RGB images; see `Loaded.encode`."""
        inputs = self._loaded.read(images)
        if len(images) == 1 or torch.cuda.is_available():
            return self._loaded.encode(images, inputs)
        parts = [*self._parts([*map(_shape, inputs)])]
        return [features for part in parts for features in self._together(images[part], inputs[part])]

    def _parts(self, shapes: Sequence[Hashable]) -> Iterator[slice]:
        """Yield the images of each batch; of unknown size alone, others until they keep the CPU busy."""
        start = size = 0
        for place, shape in enumerate(shapes):
            own = self._sizes.get(shape, _BUSY + 1)
            if place > start and size + own > _BUSY:
                yield slice(start, place)
                start, size = place, 0
            size += own
        yield slice(start, len(shapes))

    def _together(self, images: Sequence[Image.Image], inputs: Sequence[Inputs]) -> list[Features]:
        shapes = tuple(map(_shape, inputs))
        if self._are_same.get(shapes):
            return self._loaded.encode(images, inputs)
        alone = [self._loaded.encode([image], [read])[0] for image, read in zip(images, inputs, strict=True)]
        self._sizes |= zip(shapes, map(_size, alone), strict=True)
        if len(images) > 1 and shapes not in self._are_same:
            self._are_same[shapes] = _equal(self._loaded.encode(images, inputs), alone)
        return alone


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
