"""Where the work of an ingest is done: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, Self, TypeVar

from radloop.errors import ConfigError, DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
_ALONE_S = 0.5  # work that is done before a pool of processes would have started
_IDLE_S = 30
_RAY_WINDOW = 256  # tasks of one Ray dataset: bounds what the driver holds


class Engine(Protocol):
    """Applies a function to tasks, elsewhere."""

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the results in the order of the tasks, holding no more than a few of either."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def get_engine(name: str, workers: int | None) -> Engine:
    """Return the engine "local" (with that many processes; all cores for None) or "ray"."""
    return Ray() if name == "ray" else Local(workers or os.cpu_count() or 1)


class Local:
    """Processes of this machine. They start only once the work turns out to be worth it."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:  # idle workers would hold their memory while what follows needs its own
            self._pool.shutdown(wait=True)

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See `Engine.map`.

        Raises:
            DataError: A worker was killed from outside, as systems do that run out of memory.
        """
        tasks = iter(tasks)
        start = time.monotonic()
        while self.workers == 1 or time.monotonic() - start < _ALONE_S:
            try:
                task = next(tasks)
            except StopIteration:
                return
            yield work(task)
        yield from self._pooled(work, tasks)

    def _pooled(self, work: Callable[[Task], Result], tasks: Iterator[Task]) -> Iterator[Result]:
        # Not the standard library's pool: its workers would run the main program's imports again
        # (zenml takes seconds), or be forked beside threads that hold locks.
        from loky import get_reusable_executor
        from loky.process_executor import TerminatedWorkerError

        self._pool = pool = get_reusable_executor(self.workers, timeout=_IDLE_S, initializer=_without_pandas)
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) >= 3 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except TerminatedWorkerError as error:
            raise DataError(
                "a worker process was killed while it read the data, most likely for want of memory; "
                f"set data.workers below {self.workers} ({str(error).splitlines()[0]})"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _without_pandas() -> None:
    """Keep pyarrow from importing pandas in a worker at its first array: 25 MB and a quarter of a second."""
    sys.meta_path.insert(0, _NoPandas())


class _NoPandas:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not needed in workers", name=name)


class Ray:
    """A Ray cluster: the one that RAY_ADDRESS names, or one of this machine.

    Its nodes need radloop installed and the source's files under the same paths.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError("data.engine: ray is not installed; pip install 'radloop[ray]'") from None
        self.ray = ray
        self.started = False

    def __enter__(self) -> Self:
        if not self.ray.is_initialized():
            self.ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
            self.started = True
        return self

    def __exit__(self, *error: object) -> None:
        if self.started:
            self.ray.shutdown()

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See `Engine.map`."""
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        tasks = iter(tasks)
        while window := list(itertools.islice(tasks, _RAY_WINDOW)):
            rows = ray.data.from_items([{"task": task} for task in window])
            for row in rows.map(_Apply(work)).iter_rows():
                yield row["result"]


class _Apply:
    """`work` on one row of a Ray dataset."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": self.work(row["task"])}
