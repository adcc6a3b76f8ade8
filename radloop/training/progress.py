"""What a run shows of itself while it goes on."""

from __future__ import annotations

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """A bar on a terminal; elsewhere a log line for every tenth of the steps."""

    def __init__(self, num_steps: int, first_step: int = 1, shown: bool = True) -> None:
        self._num_steps = num_steps
        self._every = max(1, num_steps // 10)
        self._start = time.perf_counter()
        self._num_samples = 0
        self._bar = tqdm(
            total=num_steps,
            initial=first_step - 1,
            desc="finetune",
            unit="step",
            disable=not (shown and sys.stderr.isatty()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, facts: dict[str, float], num_samples: int) -> None:
        self._num_samples += num_samples
        speed = self._num_samples / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"loss {facts['loss']:.3f}, {speed:.0f} samples/s", refresh=False)
        self._bar.update()
        step = int(facts["step"])
        if self._bar.disable and (step % self._every == 0 or step == self._num_steps):
            logger.info(
                "finetune: step %d of %d, loss %.3f, %.0f samples/s",
                step,
                self._num_steps,
                facts["loss"],
                speed,
            )
