"""What is known of an image once its pixels have been looked at."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from radloop.data.imaging import examine as look
from radloop.data.imaging.hashing import perceptual_hash
from radloop.data.privacy import has_burnt_in_text

FACTS = ("id", "width", "height", "mode", "format", "frames", "blank", "pixel_hash", "perceptual_hash",
         "burnt_in_text", "error")  # fmt: skip


def examine(data: bytes, frame: int, window: str) -> dict[str, Any]:
    """Decode an image once and describe it; never raises for what is in `data`.

    Returns:
        `FACTS` except the id; what an image that cannot be read lacks is None or "".
    """
    facts, rgb = look(data, frame=frame, window=window)
    found = asdict(facts) | {"perceptual_hash": None, "burnt_in_text": None}
    if rgb is not None:
        found["perceptual_hash"] = perceptual_hash(rgb)
        found["burnt_in_text"] = has_burnt_in_text(np.asarray(rgb))
    return found
