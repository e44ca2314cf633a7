"""The guest of the supervisor's tests."""

from __future__ import annotations

from tests.supervisor.conftest import guest_kernel

__all__ = ["guest_kernel"]
