"""Materializer of `ValidationReport`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.data.quality.report import ValidationReport


class ValidationReportMaterializer(FolderMaterializer):
    """See `ValidationReport.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (ValidationReport,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS
