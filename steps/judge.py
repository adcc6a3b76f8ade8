"""Let a judge compare the answers of challenger and incumbent pair by pair."""

from typing import Annotated

from zenml import log_metadata, step

from materializers import JudgeReportMaterializer
from radloop.config import JudgeConfig
from radloop.evaluation import EvaluationReport
from radloop.judging import JudgeReport
from radloop.judging import judge as compare
from steps._caching import evaluation_code, reuse_while_same


@step(cache_policy=reuse_while_same(evaluation_code), output_materializers=JudgeReportMaterializer)
def judge(
    evaluation: EvaluationReport, config: JudgeConfig, seed: int
) -> Annotated[JudgeReport, "judge_report"]:
    """Judge the challenger against the champion, or against the base when there is none."""
    report = compare(evaluation, config, seed)
    log_metadata(report.facts())
    return report
