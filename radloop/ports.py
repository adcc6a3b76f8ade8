"""Ports for the endpoint and the chat page."""

from __future__ import annotations

import socket

from radloop.errors import RadloopError


def require_free(host: str, port: int) -> None:
    """Make sure that a server can be started on the port.

    Raises:
        RadloopError: Something listens there already, or it must not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RadloopError(
                f"port {port} of {host} cannot be used ({error.strerror}); name another with --port"
            ) from None
