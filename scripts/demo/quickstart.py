"""See a real guest boot, be snapshotted and come back eight times. Run by scripts/quickstart."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import Never

from ovms_supervisor.client import Client
from scripts.demo.build import default_cache, demo_files
from scripts.demo.daemon import Daemon, private_daemon
from scripts.demo.packages import PackageError
from scripts.demo.report import table
from scripts.demo.store import pack_demo
from scripts.demo.tour import Figures, TourError, tour
from spec.errors import OvmsError
from vmm.driver import RuntimeName
from vmm.registry import drivers

CLONES = 8
REFERENCE = "demo:latest"
NEXT_COMMANDS = """\
The machine is as it was, but for the packages, .venv, and the artifact demo:latest in the store of 'ovm'. Go on with:

  export PATH="{bin}:$PATH"
  ovm doctor                               # what this host can do
  ovm run demo:latest --name first         # starts the daemon too, if none runs
  ovm logs -f first                        # Ctrl-C ends the reading, not the machine
  ovm snapshot first -t demo:fastboot
  ovm run demo:fastboot --count 8
  ovm ps
  ovm rm -f $(ovm ps -aq) && ovm serve --stop   # clean up"""


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the table."""
    sys.stderr.write(f"· {text}\n")
    sys.stderr.flush()


async def usable_runtimes() -> list[RuntimeName]:
    """The names of the runtimes that work here; why another doesn't is said."""
    usable: list[RuntimeName] = []
    for driver in drivers({}).values():
        report = await driver.probe()
        if report.usable:
            usable.append(report.name)
        else:
            say(f"{report.name} is left out: {'; '.join(each.detail for each in report.limitations)}")
    return usable


async def measure(daemon: Daemon) -> list[Figures]:
    """The tour on every runtime that works here. SIGTERM and SIGHUP cancel it, as asyncio has SIGINT do."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel, number)
    runtimes = await usable_runtimes()
    if not runtimes:
        raise TourError("no runtime works on this host; 'ovm doctor' tells what is missing")
    async with Client(daemon.socket) as client:
        return [await tour(client, REFERENCE, runtime, CLONES, say) for runtime in runtimes]


def end_at_signals() -> None:
    """Let SIGTERM and SIGHUP end the program as an exception does, with all that is to be cleaned up."""

    def end(number: int, _: object) -> Never:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def run() -> None:
    """The whole of it. Raises what can go wrong, after cleaning up."""
    files = demo_files(default_cache())
    say(f"kernel, initrd and two disk layers of {files.kernel_package}: {files.kernel.parent}")
    digest = pack_demo(files, REFERENCE)
    say(f"packed {REFERENCE}: {digest}")
    with private_daemon() as daemon:
        pack_demo(files, REFERENCE, environment=daemon.environment)
        say(f"a daemon of our own listens on {daemon.socket}")
        try:
            figures = asyncio.run(measure(daemon))
        except asyncio.CancelledError as error:
            raise SystemExit(128 + (error.args[0] if error.args else signal.SIGTERM)) from None
        finally:
            end_at_signals()  # the loop has put back the default
    print(f"\n{table(figures)}\n")
    print(NEXT_COMMANDS.format(bin=sys.prefix + "/bin"))


def main() -> int:
    """0, or 1 with a sentence on stderr, or 130 after Ctrl-C; nothing is left running in any case."""

    end_at_signals()
    try:
        run()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; everything that was started has been ended\n")
        return 130
    except OvmsError as error:
        sys.stderr.write(f"quickstart: {error.title}: {error.detail}\n  {error.remedy}\n")
    except (TourError, PackageError) as error:
        sys.stderr.write(f"quickstart: {error}\n")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        sys.stderr.write(f"quickstart: {' '.join(map(str, error.cmd))} failed:\n{said}")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
