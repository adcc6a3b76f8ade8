"""Which image files show the same picture: the same pixels, or nearly the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


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
    pictures: dict[str, str] = {}
    same: dict[str, str] = {}  # of the same pixels or look: the first image's id stands for all
    groups = near_groups_of(images).tolist()
    columns = (images["id"].to_pylist(), images["pixel_hash"].to_pylist(), groups)
    for image_id, pixels, group in sorted(zip(*columns, strict=True)):
        keys = [key for key in (pixels and f"pixels {pixels}", group >= 0 and f"look {group}") if key]
        picture = next((same[key] for key in keys if key in same), image_id)
        pictures[image_id] = picture
        same |= dict.fromkeys(keys, picture)
    return pictures
