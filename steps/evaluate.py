"""Score base, tuned and reigning model on the same test samples."""

from typing import Annotated

import mlflow
from zenml import step

from materializers import EvaluationReportMaterializer
from radloop import incumbency, registry
from radloop.config import EvaluationConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.evaluation import EvaluationReport
from radloop.evaluation import evaluate as score
from radloop.training.adapter import Adapter
from steps._caching import evaluation_code, reuse_while_same
from steps._tracking import log_facts


@step(
    cache_policy=reuse_while_same(evaluation_code),
    experiment_tracker=True,
    output_materializers=EvaluationReportMaterializer,
)
def evaluate(
    data: PreparedData,
    adapter: Adapter,
    model: ModelConfig,
    config: EvaluationConfig,
    seed: int,
    incumbent: str,
) -> Annotated[EvaluationReport, "evaluation_report"]:
    """Score the adapter against the base and, if there is one, the `incumbent` ("name/version")."""
    adapters = {"base": None, "tuned": adapter.folder}
    if incumbent:
        adapters["champion"] = registry.adapter_folder(incumbency.version_of(incumbent))
    report = score(data, model, adapters, config, seed)
    mlflow.log_metrics(
        {key: value for key, value in report.facts().items() if isinstance(value, (int, float))}
    )
    log_facts(report)
    return report
