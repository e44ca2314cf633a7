"""The systemd units of the daemon: a service that systemd watches, and the socket that it holds open for it.

What matters for the machines: ``KillMode=process`` and ``OOMPolicy=continue``, because VMMs are in the service's cgroup
and outlive the daemon; a run directory that is preserved, since the next daemon finds them there; and no option that
gives the service a mount namespace of its own (``ProtectSystem=``, ``PrivateTmp=``, …), in which the tmpfs mounts of
one daemon would be hidden from the next. The hardening is what remains: privileges that neither the daemon nor QEMU or
Cloud Hypervisor use (systemd.exec(5)).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SERVICE_NAME: Final = "ovms.service"
SOCKET_NAME: Final = "ovms.socket"

WATCHDOG_S: Final = 30
"""A daemon whose event loop stood still for so long is killed and started anew; its machines run on."""


def service_unit(command: list[str], *, user: bool) -> str:
    """The service; ``command`` is the argument vector of ``ovm serve``, ``user`` whether a user's systemd runs it."""
    limits = (
        ""
        if user
        else """\
LimitNOFILE=1048576
LimitNPROC=infinity
LimitMEMLOCK=infinity
OOMScoreAdjust=-900
"""
    )
    hardening = "" if user else _HARDENING
    return f"""\
[Unit]
Description=Open Virtual Machine Spec supervisor
Requires={SOCKET_NAME}
After={SOCKET_NAME}{"" if user else " network-online.target"}

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(map(_quoted, command))}
WatchdogSec={WATCHDOG_S}
Restart=on-failure
RestartSec=1
# Taking over thousands of machines takes a while; the daemon asks for more time if that is not enough.
TimeoutStartSec=120
TimeoutStopSec=90

# Machines outlive the daemon: neither a stop, nor a crash, nor an OOM kill of one of them may end the others.
KillMode=process
OOMPolicy=continue
Delegate=yes
TasksMax=infinity
{limits}{hardening}
[Install]
WantedBy={"default.target" if user else "multi-user.target"}
Also={SOCKET_NAME}
"""


def socket_unit(socket: Path, group: str | None, *, user: bool) -> str:
    """The socket: ours alone, or a group's. Connections wait in it while the daemon restarts."""
    access = f"SocketMode=0660\nSocketGroup={group}" if group else "SocketMode=0600"
    return f"""\
[Unit]
Description=API socket of the Open Virtual Machine Spec supervisor

[Socket]
ListenStream={socket}
{access}
DirectoryMode={"0711" if group else "0700"}
Backlog=1024
RemoveOnStop=yes

[Install]
WantedBy={"sockets.target" if not user else "default.target"}
"""


_HARDENING: Final = """
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_VSOCK AF_PACKET
KeyringMode=private
UMask=0077
"""


def _quoted(word: str) -> str:
    """A word of a command line as systemd reads it: ``%`` and ``$`` are doubled, blanks quoted."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if not escaped or any(each in escaped for each in " \t'\";") else escaped
