"""The policy that holds now: read again whenever its file, or a key file, is another one than before."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Final

from cache.trust.policy_file import Policy, path_identity, read_policy
from spec.errors import InvalidPolicy

DEFAULT_PATH: Final = Path("etc/policy.toml")
"""Below the root."""


class PolicySource:
    """Safe for threads; methods block on the disk, for microseconds if nothing has changed."""

    def __init__(self, root: Path, named: Path | None) -> None:
        """``named``: the file that the configuration names, which must be there; else that below the root, if any."""
        self.path: Final = named or root / DEFAULT_PATH
        self._must_exist = named is not None
        self._lock = Lock()
        self._policy: Policy | None = None

    def is_absent(self) -> bool:
        """Whether there is no policy, and need not be one: a look at one inode."""
        return not self._must_exist and not os.path.lexists(self.path)

    def current(self) -> Policy | None:
        """The policy; None if there is none, which admits everything.

        Raises InvalidPolicy for one that can't be used: an older one does not hold in its place.
        """
        with self._lock:
            if self._policy is None or not _is_as_read(self._policy):
                self._policy = None
                self._policy = self._read()
            return self._policy

    def _read(self) -> Policy | None:
        if os.path.lexists(self.path):
            return read_policy(self.path)
        if self._must_exist:
            raise InvalidPolicy(f"{self.path} is not there, and the configuration names it", path=str(self.path))
        return None


def _is_as_read(policy: Policy) -> bool:
    return all(path_identity(path) == identity for path, identity in policy.files.items())
