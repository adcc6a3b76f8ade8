"""Materializer of `Release`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.release import Release


class ReleaseMaterializer(FolderMaterializer):
    """See `Release.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (Release,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.MODEL
