"""Which image files show the same picture: the same pixels, or nearly the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from radloop.data.splits import connected


def near_groups_of(images: pa.Table) -> np.ndarray:
    """Number the groups of images that look the same.

    Args:
        images: Table of schema `corpus.IMAGES`.

    Returns:
        The group of each image, counted from 0, or -1 where no other image looks the same; int64,
        shape (n,). Blank images are in none.
    """
    from radloop.data.quality.near import near_groups

    found = np.full(images.num_rows, -1, np.int64)
    usable = pc.and_(pc.is_valid(images["perceptual_hash"]), pc.invert(pc.fill_null(images["blank"], False)))
    rows = np.flatnonzero(usable.to_numpy())
    if len(rows):
        found[rows] = near_groups(images["perceptual_hash"].filter(usable).combine_chunks())
    return found


def pictures_of(images: pa.Table) -> dict[str, str]:
    """Return for each image id what all ids that show the same picture have in common.

    Args:
        images: Table of schema `corpus.IMAGES`.
    """
    ids = images["id"].to_pylist()
    keys = [
        [f"pixels {pixels}"] * bool(pixels) + [f"look {group}"] * (group >= 0)
        for pixels, group in zip(
            images["pixel_hash"].to_pylist(), near_groups_of(images).tolist(), strict=True
        )
    ]
    first: dict[str, str] = {}  # the numbers of looks depend on the other images, an image's id does not
    pictures = sorted(zip(ids, connected(keys, alone=ids), strict=True))
    return {image_id: first.setdefault(picture, image_id) for image_id, picture in pictures}
