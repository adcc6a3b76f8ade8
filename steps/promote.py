"""Decide by the gates whether the challenger becomes champion."""

from typing import Annotated

from zenml import step

from materializers import PromotionDecisionMaterializer
from radloop import incumbency, registry
from radloop.config import PromotionConfig
from radloop.evaluation import EvaluationReport
from radloop.judging import JudgeReport
from radloop.promotion import PromotionDecision, decide
from radloop.release import Release
from steps._caching import evaluation_code, reuse_while_same
from steps._tracking import log_facts


@step(
    cache_policy=reuse_while_same(evaluation_code),
    experiment_tracker=True,
    output_materializers=PromotionDecisionMaterializer,
)
def promote(
    release: Release,
    evaluation: EvaluationReport,
    judged: JudgeReport,
    config: PromotionConfig,
    incumbent: str,
) -> Annotated[PromotionDecision, "promotion_decision"]:
    """Move the alias, or say on the version why not."""
    incumbency.require_reigning(release.model_name, incumbent, release.version)
    decision = decide(evaluation, judged, config, f"champion {incumbent}" if incumbent else "base")
    act = registry.promote if decision.promoted else registry.refuse
    act(release.model_name, release.version, decision.reason)
    log_facts(decision)
    return decision
