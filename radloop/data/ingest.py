"""From the config's data section to a corpus."""

from __future__ import annotations

from pydantic import ValidationError

from radloop.config import DataConfig
from radloop.data.adapters import get_adapter
from radloop.data.corpus import Corpus
from radloop.errors import ConfigError, DataError


def ingest(config: DataConfig) -> Corpus:
    """Read the corpus that `config` names.

    Raises:
        ConfigError: Unknown adapter, or options that the adapter does not take.
        DataError: The source cannot be read, or holds no sample.
    """
    adapter = get_adapter(config.adapter)
    try:
        options = adapter.Options.model_validate(config.options)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        known = ", ".join(adapter.Options.model_fields) or "none"
        raise ConfigError(f"data.options of adapter {config.adapter!r}: {faults}; known: {known}") from None
    corpus = adapter.read(config.path, options)
    if not corpus.samples.num_rows:
        raise DataError(f"adapter {config.adapter!r} found no sample in {config.path}; check data.path")
    return corpus
