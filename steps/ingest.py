"""Read the data set into a corpus."""

from typing import Annotated

from zenml import step

from materializers import CorpusMaterializer
from radloop.config import DataConfig
from radloop.data.corpus import Corpus
from radloop.data.ingest import ingest as read_corpus
from radloop.errors import DataError
from steps._caching import data_code, reuse_while_same
from steps._tracking import log_facts


@step(cache_policy=reuse_while_same(data_code), output_materializers=CorpusMaterializer)
def ingest(data: DataConfig, fingerprint: str) -> Annotated[Corpus, "corpus"]:
    """Read everything under `data`.

    Args:
        data: The source.
        fingerprint: Of the corpus when the run was started: makes new data a new input.
    """
    corpus = read_corpus(data)
    if corpus.fingerprint != fingerprint:
        raise DataError(
            f"the data changed between the start of the run ({fingerprint}) and now "
            f"({corpus.fingerprint}); start the run again when nothing writes to it"
        )
    log_facts(corpus)
    return corpus
