"""How a machine ended, as a sentence for a person."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache.host_errors import explain
from spec.errors import InternalError, OvmsError
from spec.instance import ExitInfo, InstanceState
from vmm.driver import Ending


class Lost(Exception):
    """A machine that is gone, or must go, through what became of the daemon or the host; the text is the reason."""


CONSOLE_LINES: Final = 20
"""How much of the console an exit quotes."""

_SIGNAL_HINTS: Final = {
    signal.SIGBUS: "the tmpfs of its RAM or the file system of a mapped file is probably full",
    signal.SIGSYS: "a seccomp filter does not allow what it tried",
    signal.SIGSEGV: "a bug of the VMM",
    signal.SIGABRT: "it gave up on an inner error, see vmm.log",
}

_OOM_HINT: Final = ": the kernel has killed for want of memory meanwhile (dmesg tells which process)"

_VMSTAT = Path("/proc/vmstat")
_MAX_VMSTAT_BYTES = 64 << 10


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since boot; None where it does not tell.

    Some ten microseconds, in the event loop too.
    """
    try:
        fd = os.open(_VMSTAT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        _, found, rest = os.pread(fd, _MAX_VMSTAT_BYTES, 0).partition(b"\noom_kill ")
    finally:
        os.close(fd)
    return int(rest.partition(b"\n")[0]) if found else None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What became of an instance; ``error`` is what a caller that waits for its start is given."""

    state: InstanceState
    reason: str
    error: OvmsError | None = None


def conclude(
    ending: Ending | None, *, ordered: str | None, failure: Exception | None, oom_kills_before: int | None
) -> Conclusion:
    """Stopped if somebody ordered it or the guest wanted it, else failed; asks the kernel for hints (blocks).

    ``ending`` is None if there never was a process; ``ordered`` is the cause of the stop order, if there was one.
    """
    if ordered is not None:
        if ending is None:
            return Conclusion(InstanceState.STOPPED, f"{ordered}, while it was starting")
        killed = ending.signal == signal.SIGKILL
        return Conclusion(InstanceState.STOPPED, ordered + ("; its VMM had to be killed" if killed else ""))
    if failure is None and ending is None:
        failure = InternalError("it ended without ever having a VMM")
    if isinstance(failure, Lost):
        return Conclusion(InstanceState.FAILED, str(failure))
    if isinstance(failure, OSError):
        failure = explain(failure, Path("the host"))
    if isinstance(failure, OvmsError):
        return Conclusion(InstanceState.FAILED, f"{failure.title}: {failure.detail}", failure)
    if failure is not None:
        reason = f"an inner error: {failure!r}"
        return Conclusion(InstanceState.FAILED, reason, InternalError(reason))
    assert ending is not None  # noqa: S101 - the first case above
    orderly = ending.guest == "shutdown" or (ending.guest is None and ending.code == 0)
    state = InstanceState.STOPPED if orderly else InstanceState.FAILED
    return Conclusion(state, _describe(ending, oom_kills_before))


def _describe(ending: Ending, oom_kills_before: int | None) -> str:
    match ending.guest:
        case "shutdown":
            return "the guest powered itself off"
        case "panic":
            return "the guest's kernel panicked"
        case "reset":
            return "the guest reset itself (a reboot, a triple fault or a panic that reboots)"
    if ending.signal is not None:
        return f"the VMM was killed by {_name(ending.signal)}" + _hint(ending.signal, oom_kills_before)
    if ending.code is None:
        unknown = "the VMM ended; an earlier daemon had started it, so the kernel keeps its exit code from this one"
        return unknown + (_OOM_HINT if _oom_since(oom_kills_before) else "")
    return f"the VMM exited with code {ending.code}" + ("" if ending.code == 0 else ", see vmm.log")


def exit_info(ending: Ending | None, reason: str, last_console: list[str]) -> ExitInfo:
    """The exit as status shows it."""
    code, signum = (ending.code, ending.signal) if ending else (None, None)
    return ExitInfo(code=code, signal=signum, reason=reason, last_console=last_console)


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _oom_since(before: int | None) -> bool:
    now = oom_kills()
    return now is not None and before is not None and now > before


def _hint(signum: int, oom_kills_before: int | None) -> str:
    if signum == signal.SIGKILL:
        return _OOM_HINT if _oom_since(oom_kills_before) else ": somebody outside the daemon did that"
    hint = _SIGNAL_HINTS.get(signal.Signals(signum)) if signum in set(signal.Signals) else None
    return f": {hint}" if hint else ""
