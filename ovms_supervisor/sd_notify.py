"""Tell systemd how we are (sd_notify(3)); without ``NOTIFY_SOCKET`` nothing happens."""

from __future__ import annotations

import os
import socket


def sd_notify(*states: str) -> None:
    """Send ``READY=1``, ``STOPPING=1``, … A service manager that does not listen is none of our trouble."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.setblocking(False)
        try:
            notifier.sendto("\n".join(states).encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return
