"""Materializer of `JudgeReport`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.judging import JudgeReport


class JudgeReportMaterializer(FolderMaterializer):
    """See `JudgeReport.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (JudgeReport,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS
