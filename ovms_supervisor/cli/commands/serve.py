"""``ovm serve``."""

from __future__ import annotations

import os

import click

from ovms_supervisor.cli import background, output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from spec.errors import DaemonRunning, DaemonUnreachable

_STOP_LIMIT_S = 60.0


@click.command(
    "serve",
    cls=OvmCommand,
    examples=["ovm serve", "ovm serve --detach", "ovm serve --on-exit stop", "ovm serve --stop --free"],
)
@click.option(
    "--on-exit",
    type=click.Choice(["leave", "stop"]),
    help="What becomes of machines when the daemon ends: they go on (default), or are stopped.",
)
@click.option("-d", "--detach", is_flag=True, help="Start it in the background, print its pid and return.")
@click.option("--stop", "end", is_flag=True, help="End the daemon that listens on the socket, and print its pid.")
@click.option("--free", "freeing", is_flag=True, help="With --stop: free the RAM images that no machine uses, too.")
@click.option("--background", "behind", is_flag=True, hidden=True)
@pass_invocation
def serve_command(
    invocation: Invocation, on_exit: str | None, detach: bool, end: bool, freeing: bool, behind: bool
) -> None:
    """Run the daemon, in the foreground until SIGTERM or Ctrl-C.

    'ovm run' starts one in the background by itself if none listens. Machines and their consoles outlive the daemon;
    the next one takes them over.
    """
    if detach and end:
        raise click.UsageError("--detach and --stop exclude each other")
    if freeing and not end:
        raise click.UsageError("--free goes with --stop; 'ovm images --free' lets the daemon run")
    if on_exit is not None:
        invocation.flags["on_exit"] = on_exit
    if end:
        if freeing:
            _free(invocation)
        _stop(invocation)
    elif detach:
        _detach(invocation)
    else:
        settings = invocation.settings
        for variable in invocation.load().unknown_variables:
            output.message(f"ovm: the environment variable {variable} is no setting and has no effect")
        if behind:
            os.chdir("/")  # or the caller's directory could not be unmounted as long as the daemon lives
        from ovms_supervisor.daemon import run_daemon
        from ovms_supervisor.log_file import LogFile

        run_daemon(settings, LogFile(background.log_file(settings)) if behind else None)


def _detach(invocation: Invocation) -> None:
    settings = invocation.settings
    if background.answers(settings.socket):
        raise DaemonRunning(f"a daemon (pid {background.owner(settings.socket)}) answers on {settings.socket}")
    pid = background.start(settings, invocation.arguments())
    if pid is None:
        raise DaemonRunning(f"a daemon was started on {settings.socket} by somebody else in this moment")
    if invocation.json:
        output.as_json({"pid": pid, "socket": str(settings.socket), "log": str(background.log_file(settings))})
    else:
        output.data(str(pid))
        output.message(f"the daemon listens on {settings.socket}, log {background.log_file(settings)}")


def _free(invocation: Invocation) -> None:
    """Before the daemon ends: it alone knows what is in use."""
    from ovms_supervisor.cli.commands.images import free

    async def ask() -> tuple[int, int]:
        async with invocation.client() as client:
            images = await client.images()
            return len(images), len(await free(client, images, strict=False))

    there, freed = run_async(ask)
    in_use = f"; {there - freed} stay, since machines use them" if there > freed else ""
    output.message(f"freed {freed} RAM image{'' if freed == 1 else 's'}{in_use}")


def _stop(invocation: Invocation) -> None:
    socket = invocation.settings.socket
    pid = background.stop(socket, _STOP_LIMIT_S)
    if pid is None:
        raise DaemonUnreachable(f"nobody listens on {socket}", remedy="There is nothing to stop.")
    output.as_json({"pid": pid}) if invocation.json else output.data(str(pid))
