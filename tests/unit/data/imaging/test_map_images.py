from __future__ import annotations

import numpy as np
from PIL import Image

from radloop.data.corpus import Corpus, EncodedImage
from radloop.data.imaging import map_images, to_png, to_rgb


def test_map_images_keeps_the_order_over_many_images() -> None:
    pixels = [np.full((4, 4), level, dtype=np.uint8) for level in range(200)]
    rows = [{"id": str(n), "bytes": to_png(Image.fromarray(p))} for n, p in enumerate(pixels)]
    corpus = Corpus.of([*rows, {"id": "none"}], [])

    def level(image: EncodedImage) -> object:
        return image.data and to_rgb(image.data).getpixel((0, 0))[0]  # type: ignore[index]

    found = {image.id: result for image, result in map_images(corpus, level)}
    assert found == {str(n): n for n in range(200)} | {"none": None}
    assert list(found) == [*map(str, range(200)), "none"]
