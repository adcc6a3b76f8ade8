"""Turn accepted samples into model input, and split them."""

from typing import Annotated

from zenml import step

from materializers import PreparedDataMaterializer
from radloop import incumbency, registry
from radloop.config import PreprocessConfig
from radloop.data.corpus import Corpus
from radloop.data.prepared import PreparedData
from radloop.data.preprocess import preprocess as prepare
from radloop.data.quality.report import ValidationReport
from steps._caching import data_code, reuse_while_same
from steps._tracking import log_facts


@step(cache_policy=reuse_while_same(data_code), output_materializers=PreparedDataMaterializer)
def preprocess(
    corpus: Corpus, report: ValidationReport, config: PreprocessConfig, seed: int, keep_split_of: str
) -> Annotated[PreparedData, "prepared_data"]:
    """Stop if validation refused the corpus; else convert, resize, prompt and split.

    Args:
        corpus: All samples.
        report: Which of them may be used.
        config: Size, prompt and kind of split.
        seed: Of the split.
        keep_split_of: Version ("name/version") whose split the new one extends; "" for none.
    """
    report.require_accepted()
    kept = registry.split_of(incumbency.version_of(keep_split_of)) if keep_split_of else {}
    prepared = prepare(corpus, report, config, seed, kept)
    log_facts(prepared)
    return prepared
