"""Materializer of `Adapter`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.training.adapter import Adapter


class AdapterMaterializer(FolderMaterializer):
    """See `Adapter.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (Adapter,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.MODEL
