"""One materializer per artifact type: Arrow, safetensors, JSON, HTML. Importing this registers all."""

from materializers.adapter import AdapterMaterializer
from materializers.corpus import CorpusMaterializer
from materializers.evaluation_report import EvaluationReportMaterializer
from materializers.judge_report import JudgeReportMaterializer
from materializers.prepared_data import PreparedDataMaterializer
from materializers.promotion_decision import PromotionDecisionMaterializer
from materializers.release import ReleaseMaterializer
from materializers.validation_report import ValidationReportMaterializer

__all__ = [
    "AdapterMaterializer",
    "CorpusMaterializer",
    "EvaluationReportMaterializer",
    "JudgeReportMaterializer",
    "PreparedDataMaterializer",
    "PromotionDecisionMaterializer",
    "ReleaseMaterializer",
    "ValidationReportMaterializer",
]
