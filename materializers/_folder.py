"""Keeps any radloop artifact in any ZenML artifact store: its files, its views, its facts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.io import fileio
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.metadata.metadata_types import MetadataType

from radloop.artifact import Artifact

_VIEW_TYPES = {".html": VisualizationType.HTML, ".png": VisualizationType.IMAGE}


class FolderMaterializer(BaseMaterializer):
    """Base of one materializer per artifact type; a subclass names its type and no more."""

    SKIP_REGISTRATION: ClassVar[bool] = True

    def save(self, data: Artifact) -> None:
        """Write the artifact's files below the artifact's URI."""
        with self.get_temporary_directory(delete_at_exit=True) as folder:
            data.save(Path(folder))
            for path in _files(Path(folder)):
                target = os.path.join(self.uri, path.relative_to(folder).as_posix())
                fileio.makedirs(os.path.dirname(target))
                fileio.copy(str(path), target, overwrite=True)

    def load(self, data_type: type[Artifact]) -> Artifact:
        """Read the artifact where it lies, or from a copy when the store is not this file system."""
        if Path(self.uri).is_dir():
            return data_type.load(Path(self.uri))
        # Tables are memory-mapped: the copy must live as long as the step that reads it.
        with self.get_temporary_directory(delete_at_exit=False, delete_after_step_execution=True) as folder:
            for base, _, names in fileio.walk(self.uri):
                for name in map(_text, names):
                    source = os.path.join(_text(base), name)
                    target = Path(folder) / os.path.relpath(source, self.uri)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    fileio.copy(source, str(target))
            return data_type.load(Path(folder))

    def save_visualizations(self, data: Artifact) -> dict[str, VisualizationType]:
        """Write the artifact's views for the dashboard."""
        kinds = {}
        for name, content in data.views().items():
            path = os.path.join(self.uri, "views", name)
            fileio.makedirs(os.path.dirname(path))
            with fileio.open(path, "w" if isinstance(content, str) else "wb") as file:
                file.write(content)
            kinds[path] = _VIEW_TYPES[Path(name).suffix]
        return kinds

    def extract_metadata(self, data: Artifact) -> dict[str, MetadataType]:
        """The artifact's facts, beside its storage size."""
        return dict(data.facts())

    def compute_content_hash(self, data: Artifact) -> str:
        """Hash the files, so that a step whose inputs did not change in content stays cached."""
        digest = hashlib.sha256()
        with self.get_temporary_directory(delete_at_exit=True) as folder:
            data.save(Path(folder))
            for path in _files(Path(folder)):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
