"""The instances of a daemon: found by id, prefix or name; names are given out once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ovms_supervisor.instance import Instance
from spec.errors import InstanceNotFound, NameInUse

_MIN_PREFIX = 4
_HEX_AND_DASHES = re.compile(r"[0-9a-f-]+")


class Roster:
    """Live and ended instances, oldest first. Used from the event loop only."""

    def __init__(self) -> None:
        self._by_id: dict[str, Instance] = {}
        self._by_name: dict[str, str | None] = {}
        """The id of the instance that has the name, or None while one with that name is being made."""

    def all(self) -> list[Instance]:
        """Every instance, in the order in which they were made."""
        return list(self._by_id.values())

    @contextmanager
    def reserved(self, name: str | None) -> Iterator[None]:
        """Keep a name for the instance that the block makes and adds. Raises NameInUse."""
        if name is None:
            yield
            return
        if name in self._by_name:
            raise NameInUse(f"the name {name!r} is in use", name=name, instance_id=self._by_name[name])
        self._by_name[name] = None
        try:
            yield
        finally:
            if self._by_name[name] is None:
                del self._by_name[name]

    def add(self, instance: Instance) -> None:
        """List an instance, which takes its name."""
        self._by_id[instance.id] = instance
        if instance.name is not None:
            self._by_name[instance.name] = instance.id

    def remove(self, instance: Instance) -> None:
        """Forget an instance; its name is free."""
        del self._by_id[instance.id]
        if instance.name is not None:
            del self._by_name[instance.name]

    def __contains__(self, instance: Instance) -> bool:
        return self._by_id.get(instance.id) is instance

    def find(self, key: str) -> Instance:
        """By id, by name, or by a prefix of at least 4 characters that only one id has. Raises InstanceNotFound."""
        if found := self._by_id.get(key) or self._by_id.get(self._by_name.get(key) or ""):
            return found
        if len(key) >= _MIN_PREFIX and _HEX_AND_DASHES.fullmatch(key):
            matches = [instance for instance_id, instance in self._by_id.items() if instance_id.startswith(key)]
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise InstanceNotFound(
                    f"{key!r} is ambiguous: the ids of {len(matches)} instances begin so",
                    remedy="Give more characters of the id.",
                )
        raise InstanceNotFound(f"no instance {key[:80]!r}")
