"""Turn accepted samples into model input, and split them."""

from typing import Annotated

from zenml import step

from materializers import PreparedDataMaterializer
from radloop.config import PreprocessConfig
from radloop.data.corpus import Corpus
from radloop.data.prepared import PreparedData
from radloop.data.preprocess import preprocess as prepare
from radloop.data.quality_report import ValidationReport
from steps._caching import data_code, reuse_while_same
from steps._tracking import log_facts


@step(cache_policy=reuse_while_same(data_code), output_materializers=PreparedDataMaterializer)
def preprocess(
    corpus: Corpus, report: ValidationReport, config: PreprocessConfig, seed: int
) -> Annotated[PreparedData, "prepared_data"]:
    """Stop if validation refused the corpus; else convert, resize, prompt and split."""
    report.require_accepted()
    prepared = prepare(corpus, report, config, seed)
    log_facts(prepared)
    return prepared
