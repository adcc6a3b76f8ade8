"""Check the corpus and put bad rows into quarantine."""

from typing import Annotated

from zenml import step

from materializers import ValidationReportMaterializer
from radloop.config import ValidationConfig
from radloop.data.corpus import Corpus
from radloop.data.quality import validate as check_corpus
from radloop.data.quality.report import ValidationReport
from steps._caching import data_code, reuse_while_same
from steps._tracking import log_facts


@step(cache_policy=reuse_while_same(data_code), output_materializers=ValidationReportMaterializer)
def validate(corpus: Corpus, config: ValidationConfig) -> Annotated[ValidationReport, "validation_report"]:
    """Report all defects. The report is kept even when `preprocess` must refuse the corpus."""
    report = check_corpus(corpus, config)
    log_facts(report)
    return report
