"""Bentos: one registered version with all it needs to serve."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

import radloop
from radloop import registry, workspace
from radloop.answering import requirements
from radloop.errors import RegistryError
from radloop.registry import Version

_DEPLOYMENT = Path(radloop.__file__).parent.parent / "deployment"
_NOT_PACKAGED = shutil.ignore_patterns("__pycache__")


def package(version: Version) -> str:
    """Build the Bento of a registered version, offline, and note its tag on the version.

    The Bento holds the adapter, radloop itself and the shipped base: it also runs where radloop is
    not installed. Its tag ends in a hash of its content, so that what is there is never built twice.

    Returns:
        The tag, such as "radloop:v3-1f0c9ab2".

    Raises:
        RegistryError: The build failed, or the store cannot be written.
    """
    store = _store() / "bentos"
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(
            f"the Bento store {store} cannot be written ({error.strerror}); check RADLOOP_HOME"
        ) from None
    with (
        # BentoML refuses to read below a hidden folder, and the store may be in one.
        tempfile.TemporaryDirectory(prefix="radloop-") as sources,
        tempfile.TemporaryDirectory(prefix="building-", dir=_store()) as scratch,
    ):
        context = Path(sources) / "context"
        _fill(context, version)
        label = f"v{version.version}-{_hash(context)[:8]}"
        tag = f"{version.name}:{label}"
        target = store / version.name / label
        if not target.exists():
            home = Path(scratch) / "home"
            _build(context, home, version, label)
            target.parent.mkdir(exist_ok=True)
            # BentoML copies a Bento into its store file by file; a rename cannot be half done
            (home / "bentoml" / "bentos" / version.name / label).rename(target)
            (target.parent / "latest").write_text(label)
    if version.tags.get("bento") != tag:
        registry.set_bento(version.name, version.version, tag)
    return tag


def is_packaged(tag: str) -> bool:
    """Tell whether the store holds this Bento."""
    return bool(tag) and _folder(tag).is_dir()


def serve_command(tag: str, host: str, port: int) -> list[str]:
    """The command that serves a Bento of the store."""
    # By folder: BentoML would first try to import a tag such as "radloop:v3" as a Python module, and
    # then serve with the radloop of the environment in place of the one in the Bento.
    return [sys.executable, "-m", "bentoml", "serve", str(_folder(tag)), "--host", host, "--port", str(port)]


def _store() -> Path:
    return Path(os.environ.get("BENTOML_HOME") or workspace.variables(workspace.home())["BENTOML_HOME"])


def _folder(tag: str) -> Path:
    return _store() / "bentos" / tag.replace(":", "/")


def _fill(context: Path, version: Version) -> None:
    """Lay out what the Bento is made of."""
    adapter = registry.adapter_folder(version)
    shutil.copytree(adapter, context / "model")
    facts = {
        "name": version.name,
        "version": version.version,
        "fingerprint": version.fingerprint,
        "base": json.loads((adapter / "base.json").read_text())["name"],
        "metrics": registry.describe(version)["metrics"],
    }
    (context / "model" / "model.json").write_text(json.dumps(facts, indent=2, sort_keys=True))
    shutil.copytree(Path(radloop.__file__).parent, context / "radloop", ignore=_NOT_PACKAGED)
    (context / "deployment").mkdir()
    for name in ("__init__.py", "service.py"):
        shutil.copy(_DEPLOYMENT / name, context / "deployment")
    (context / "requirements.txt").write_text("\n".join(requirements("python-multipart")) + "\n")


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _build(context: Path, home: Path, version: Version, label: str) -> None:
    """Run `bentoml build` in a process and a store of its own."""
    bentofile = {
        "service": "deployment.service:RadloopService",
        "name": version.name,
        "description": f"{version.name} version {version.version}. Research use; not a medical device.",
        "labels": {"version": str(version.version), "fingerprint": version.fingerprint},
        "include": ["*"],
        "python": {"requirements_txt": "requirements.txt", "lock_packages": False},
    }
    (context / "bentofile.yaml").write_text(yaml.safe_dump(bentofile))
    result = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--version", label, str(context)],
        env={**os.environ, **workspace.variables(home)},
        cwd=context,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise RegistryError(
            f"the Bento {version.name}:{label} could not be built: {lines[-1] if lines else 'no output'}; "
            "`pip check` says whether the environment is whole"
        )
