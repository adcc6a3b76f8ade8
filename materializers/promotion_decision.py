"""Materializer of `PromotionDecision`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.promotion import PromotionDecision


class PromotionDecisionMaterializer(FolderMaterializer):
    """See `PromotionDecision.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (PromotionDecision,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA_ANALYSIS
