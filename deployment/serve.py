"""Starts the endpoint on the version that an alias names."""

from __future__ import annotations

import os
from typing import NoReturn

from radloop import packaging, ports, registry
from radloop.errors import RegistryError

ALIAS_VARIABLE = "RADLOOP_ALIAS"  # read by deployment/service.py


def run_service(
    model_name: str, alias: str = registry.CHAMPION, port: int = 3000, host: str = "127.0.0.1"
) -> NoReturn:
    """Serve the version that has the alias; replaces the present process. Builds its Bento if need be.

    Raises:
        RadloopError: No version has the alias, or the port is taken.
    """
    found = [version for version in registry.versions(model_name) if alias in version.aliases]
    if not found:
        known = registry.names()
        raise RegistryError(
            f"no version of {model_name!r} has the alias {alias!r}; "
            + (
                f"known models: {', '.join(known)}; `radloop promote N` gives it to one"
                if known
                else "run `make demo` first"
            )
        )
    ports.require_free(host, port)
    tag = found[0].tags.get("bento", "")
    if not packaging.is_packaged(tag):
        tag = packaging.package(found[0])
    command = packaging.serve_command(tag, host, port)
    os.execve(command[0], command, {**os.environ, ALIAS_VARIABLE: alias})  # noqa: S606 - no shell is wanted
