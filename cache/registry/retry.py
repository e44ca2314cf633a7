"""When to try again, and how long to wait before: one table and one formula."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

RETRIED: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""What may be gone at the next try. Every other status says something about the request."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The waits double from ``first_s`` up to ``longest_s``, each spread so that clients fall out of step."""

    tries: int = 5
    first_s: float = 0.25
    factor: float = 2.0
    spread: float = 0.1
    longest_s: float = 3.0
    longest_asked_s: float = 60.0
    """The longest ``Retry-After`` that we sit out; a registry that asks for more gets no further request."""

    def wait_s(
        self, failed: int, asked_s: float | None = None, chance: Callable[[], float] = random.random
    ) -> float | None:
        """Seconds to wait after that many failed tries; None: give up."""
        if failed >= self.tries or (asked_s is not None and asked_s > self.longest_asked_s):
            return None
        wait = min(self.first_s * self.factor ** (failed - 1), self.longest_s)
        wait *= 1 + self.spread * (2 * chance() - 1)
        return wait if asked_s is None else max(wait, asked_s)


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """The seconds that ``Retry-After`` asks for: a number or a date (RFC 9110 §10.2.3); None if it makes no sense."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        then = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - (now or datetime.now(UTC))).total_seconds())
