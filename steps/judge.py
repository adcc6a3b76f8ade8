"""Let a judge compare the answers of challenger and incumbent pair by pair."""

from typing import Annotated

from zenml import log_metadata, step

from materializers import JudgeReportMaterializer
from radloop.config import JudgeConfig
from radloop.evaluation import EvaluationReport
from radloop.judging import JudgeReport
from radloop.judging import judge as compare
from steps._caching import evaluation_code, reuse_while_same
from steps._tracking import log_facts


@step(cache_policy=reuse_while_same(evaluation_code), output_materializers=JudgeReportMaterializer)
def judge(
    evaluation: EvaluationReport, config: JudgeConfig, judge_name: str, seed: int
) -> Annotated[JudgeReport, "judge_report"]:
    """Judge the challenger against the champion, or against the base when there is none.

    Args:
        evaluation: With the answers of both.
        config: Which judge, and how many pairs.
        judge_name: Model and host behind the config's judge: makes another judge a new input.
        seed: Of the pairs drawn.
    """
    report = compare(evaluation, config, seed)
    log_facts(report)
    log_metadata({"judge_at_start": judge_name})
    return report
