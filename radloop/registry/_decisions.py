"""Who is champion, decided and undone, each time with a line in the audit log."""

from __future__ import annotations

import getpass
import json
import os
from datetime import UTC, datetime

import mlflow

from radloop import workspace
from radloop.errors import RegistryError
from radloop.registry._client import connect
from radloop.registry._versions import (
    CHALLENGER,
    CHAMPION,
    Version,
    champion_number,
    get,
    list_known,
    set_tags,
)


def promote(model_name: str, number: int, reason: str) -> Version:
    """Make a version the champion. Its predecessor is kept for `rollback`; the audit log gets a line.

    Raises:
        RegistryError: There is no such version.
    """
    with connect() as client:
        get(client, model_name, number)
        previous = champion_number(client, model_name)
        if previous != number:
            set_tags(client, model_name, number, previous_champion=str(previous or ""))
        set_tags(client, model_name, number, promoted="true", reason=reason)
        _move_champion(client, model_name, number)
        _audit("promote", model_name, previous, number, reason)
        return get(client, model_name, number)


def refuse(model_name: str, number: int, reason: str) -> Version:
    """Note on a version why it was not promoted.

    Raises:
        RegistryError: There is no such version.
    """
    with connect() as client:
        get(client, model_name, number)
        set_tags(client, model_name, number, promoted="false", reason=reason)
        return get(client, model_name, number)


def rollback(model_name: str) -> Version:
    """Give the alias `champion` back to the version that had it before the present champion.

    Raises:
        RegistryError: There is no champion, or none before it.
    """
    with connect() as client:
        present = champion_number(client, model_name)
        if present is None:
            raise RegistryError(
                f"{model_name!r} has no champion to roll back from; {list_known(client, model_name)}"
            )
        before = get(client, model_name, present).tags.get("previous_champion")
        if not before:
            raise RegistryError(
                f"version {present} of {model_name!r} is the first champion, nothing lies before it; "
                f"promote another by number; {list_known(client, model_name)}"
            )
        get(client, model_name, int(before))
        reason = f"rolled back to version {before}"
        set_tags(client, model_name, present, promoted="false", reason=reason)
        set_tags(
            client, model_name, int(before), promoted="true", reason=f"rolled back from version {present}"
        )
        _move_champion(client, model_name, int(before))
        _audit("rollback", model_name, present, int(before), reason)
        return get(client, model_name, int(before))


def _move_champion(client: mlflow.MlflowClient, model_name: str, number: int) -> None:
    client.set_registered_model_alias(model_name, CHAMPION, str(number))
    if CHALLENGER in get(client, model_name, number).aliases:
        client.delete_registered_model_alias(model_name, CHALLENGER)


def _audit(action: str, model_name: str, before: int | None, after: int, reason: str) -> None:
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user id may have no name
        who = f"uid {os.getuid()}"
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": who,
        "action": action,
        "model": model_name,
        "from": before,
        "to": after,
        "reason": reason,
    }
    with (workspace.home() / "audit.log").open("a") as log:
        log.write(json.dumps(line) + "\n")
        log.flush()
        os.fsync(log.fileno())
