"""Materializer of `EvaluationReport`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.evaluation import EvaluationReport


class EvaluationReportMaterializer(FolderMaterializer):
    """See `EvaluationReport.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (EvaluationReport,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS
