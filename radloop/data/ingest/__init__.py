"""From the config's data section to a corpus: streamed, spread over processes, and only what is new."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from radloop.config import DataConfig, SourceConfig
from radloop.data.adapters import get_adapter
from radloop.data.corpus import Corpus
from radloop.data.ingest.assembly import Touched, assemble
from radloop.data.ingest.engines import get_engine
from radloop.data.ingest.index import Index
from radloop.data.source import Images, Source, Unit
from radloop.errors import ConfigError, DataError

__all__ = ["Touched", "ingest", "ingest_and_count"]
logger = logging.getLogger(__name__)


def ingest(config: DataConfig) -> Corpus:
    """Read the corpus that `config` names.

    Memory stays the same whatever the number of samples: tables are written batch by batch and
    mapped into memory afterwards. A later call reads only what has changed since.

    Raises:
        ConfigError: Unknown adapter, or options that the adapter does not take.
        DataError: A source cannot be read, or holds no sample.
    """
    return ingest_and_count(config)[0]


def ingest_and_count(config: DataConfig) -> tuple[Corpus, Touched]:
    """As `ingest`, and how much of the sources had to be read for it."""
    start = time.monotonic()
    sources = [_open(source) for source in config.sources]
    called = [source.name or source.adapter for source in config.sources]
    if twice := {name for name in called if called.count(name) > 1}:
        raise ConfigError(
            f"data.sources: {len(called)} sources, of which several are called {', '.join(sorted(twice))}; "
            "give each a name of its own, such as {name: hospital_a, adapter: table, ...}"
        )
    # The index holds texts and names as they are.
    opened = nullcontext(Index(None, None)) if config.deidentify else Index.open()
    with opened as index, get_engine(config.engine, config.workers) as engine:
        corpus, touched = assemble(sources, engine, index, deidentify=config.deidentify)
    if not corpus.samples.num_rows:
        names = ", ".join(f"{source.adapter} in {source.path}" for source in config.sources)
        why = "; ".join(f"{count:,} left out: {reason}" for reason, count in corpus.left_out.items())
        raise DataError(f"found no sample ({names}); " + (why or "check data.path"))
    seconds = time.monotonic() - start
    logger.info("%s, %.1f s", touched, seconds)
    return corpus, touched


def _open(config: SourceConfig) -> Source:
    adapter = get_adapter(config.adapter)
    try:
        options = adapter.Options.model_validate(config.options)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        known = ", ".join(adapter.Options.model_fields) or "none"
        raise ConfigError(f"data.options of adapter {config.adapter!r}: {faults}; known: {known}") from None
    source = adapter.open(config.path, options)
    return _Named(source, config.name) if config.name else source


@dataclass(frozen=True)
class _Named(Source):
    """A source whose data set has the name that the config gives it."""

    source: Source
    name: str

    def units(self) -> Iterator[Unit]:
        return self.source.units()

    def rows(self, unit: Unit) -> Iterator[Any]:
        return self.source.rows(unit)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        for sample in self.source.samples(row, images):
            if "left_out" not in sample:
                sample = sample | {"dataset": self.name, "id": sample["id"] and f"{self.name}-{sample['id']}"}
            yield sample
