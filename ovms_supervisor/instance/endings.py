"""How a machine ended, as a sentence for a person."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

from spec.errors import OvmsError
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

_VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since boot; None where it does not tell."""
    try:
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except OSError:
        return None
    return None


def final_state(ending: Ending, *, asked: bool) -> InstanceState:
    """Stopped if the caller or the guest wanted it, else failed."""
    orderly = ending.guest == "shutdown" or (ending.guest is None and ending.code == 0)
    return InstanceState.STOPPED if asked or orderly else InstanceState.FAILED


def describe(ending: Ending, *, asked: bool, oom_kills_before: int | None) -> str:
    """Why the machine is no longer there."""
    if asked:
        killed = ending.signal == signal.SIGKILL
        return "stopped on request" + ("; its VMM had to be killed" if killed else "")
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
        return "the VMM ended; an earlier daemon had started it, so the kernel keeps its exit code from this one"
    return f"the VMM exited with code {ending.code}" + ("" if ending.code == 0 else ", see vmm.log")


def exit_info(ending: Ending | None, reason: str, last_console: list[str]) -> ExitInfo:
    """The exit as status shows it."""
    code, signum = (ending.code, ending.signal) if ending else (None, None)
    return ExitInfo(code=code, signal=signum, reason=reason, last_console=last_console)


def failure(error: Exception) -> str:
    """Why an instance failed that did not just end."""
    if isinstance(error, Lost):
        return str(error)
    return f"{error.title}: {error.detail}" if isinstance(error, OvmsError) else f"an inner error: {error!r}"


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _hint(signum: int, oom_kills_before: int | None) -> str:
    if signum == signal.SIGKILL:
        now = oom_kills()
        if now is not None and oom_kills_before is not None and now > oom_kills_before:
            return ": the kernel has killed for want of memory meanwhile (dmesg tells which process)"
        return ": somebody outside the daemon did that"
    hint = _SIGNAL_HINTS.get(signal.Signals(signum)) if signum in set(signal.Signals) else None
    return f": {hint}" if hint else ""
