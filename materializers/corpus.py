"""Materializer of `Corpus`."""

from zenml.enums import ArtifactType

from materializers._folder import FolderMaterializer
from radloop.data.corpus import Corpus


class CorpusMaterializer(FolderMaterializer):
    """See `Corpus.save` for the files."""

    SKIP_REGISTRATION = False
    ASSOCIATED_TYPES = (Corpus,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA
