"""One function over all images of a corpus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from radloop.data.corpus import Corpus, EncodedImage

Result = TypeVar("Result")


def map_images(
    corpus: Corpus, work: Callable[[EncodedImage], Result]
) -> Iterator[tuple[EncodedImage, Result]]:
    """Yield each image with `work(image)`, in the corpus' order, on all cores.

    Pillow releases the interpreter lock while it decodes, so threads do. No more than a few dozen
    files are held in memory.
    """
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[EncodedImage] = []
        for image in corpus.encoded_images():
            waiting.append(image)
            if len(waiting) >= 8 * workers:
                yield from zip(waiting, pool.map(work, waiting), strict=True)
                waiting = []
        yield from zip(waiting, pool.map(work, waiting), strict=True)
