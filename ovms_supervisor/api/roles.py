"""What callers may do: look, or also change. Without a configuration, whoever can connect may do both."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ovms_supervisor.api.caller import Caller
from spec.errors import InvalidConfig

_CERTIFICATE: Final = "cert:"


@dataclass(frozen=True, slots=True)
class Roles:
    """The configuration with its names resolved, once, when the daemon starts."""

    operators: frozenset[str] | None = None
    """Principals (see :class:`Caller`) that may change things; None: all that are not listed as readers."""
    readers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, operators: Iterable[str] | None, readers: Iterable[str]) -> Roles:
        """Users by name or number, groups with ``@`` before it, ``cert:NAME``, ``token``. Raises InvalidConfig.

        The daemon's own user and root are always operators, since they could as well do without the daemon.
        """
        return cls(
            None if operators is None else frozenset(map(_principal, operators)), frozenset(map(_principal, readers))
        )

    @property
    def given(self) -> bool:
        """Whether anybody is told apart."""
        return self.operators is not None or bool(self.readers)

    def may_change(self, caller: Caller) -> bool:
        """Whether the caller is an operator."""
        if caller.principals & {"uid:0", f"uid:{os.geteuid()}"}:
            return True
        if self.operators is None:
            return not self.readers or (bool(caller.principals) and not caller.principals & self.readers)
        return bool(caller.principals & self.operators)


def _principal(written: str) -> str:
    if written == "token" or (written.startswith(_CERTIFICATE) and len(written) > len(_CERTIFICATE)):
        return written
    kind, name = ("gid", written[1:]) if written.startswith("@") else ("uid", written)
    if name.isascii() and name.isdigit():
        return f"{kind}:{int(name)}"
    try:
        return f"{kind}:{grp.getgrnam(name).gr_gid if kind == 'gid' else pwd.getpwnam(name).pw_uid}"
    except KeyError:
        raise InvalidConfig(
            f"roles: there is no {'group' if kind == 'gid' else 'user'} {name[:80]!r}",
            remedy="Write users by name or number, and groups likewise with an @ before it.",
        ) from None
