"""Materializer of `PreparedData`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.data.prepared import PreparedData


class PreparedDataMaterializer(FolderMaterializer):
    """See `PreparedData.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (PreparedData,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
