"""Which event loop the daemon gets."""

from __future__ import annotations

import asyncio
import sys

import pytest

from ovms_supervisor.event_loop import loop_factory
from spec.errors import InvalidConfig


def test_asyncio_is_what_it_says() -> None:
    assert loop_factory("asyncio") is None


@pytest.mark.usefixtures("uvloop_here")
def test_auto_takes_uvloop_where_it_is_installed() -> None:
    import uvloop

    factory = loop_factory("auto")
    assert factory is loop_factory("uvloop")
    assert factory is not None
    with asyncio.Runner(loop_factory=factory) as runner:
        assert isinstance(runner.get_loop(), uvloop.Loop)


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it could not be imported
    with pytest.raises(InvalidConfig, match="uvloop") as caught:
        loop_factory("uvloop")
    assert "auto" in (caught.value.remedy or "")
