"""One call of ``ovm``: the global options, and what commands make of them (settings, store, client)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:  # the real imports are made by those who need them: --help must not pay for them
    from cache.store import Store
    from ovms_supervisor.client import Client
    from ovms_supervisor.config import Loaded, Settings

T = TypeVar("T")


class Invocation:
    """The object of the click context, shared by the group and its command."""

    def __init__(self) -> None:
        self.flags: dict[str, str] = {}
        """Settings given as flags, by key."""
        self.config_file: Path | None = None
        self.format = "table"
        self.debug = False
        self.command = ""
        """The name of the command, once it is known."""
        self._loaded: Loaded | None = None

    @property
    def json(self) -> bool:
        """Whether results are to be JSON."""
        return self.format == "json"

    def load(self) -> Loaded:
        """The settings with their origins; read once."""
        if self._loaded is None:
            from ovms_supervisor.config import load

            self._loaded = load(self.flags, file=self.config_file)
        return self._loaded

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.load().settings

    def store(self) -> Store:
        """The local store, made if it is not there yet."""
        from cache.store import Store

        store = Store(self.settings.root)
        store.create()
        return store

    def client(self) -> Client:
        """A client of the daemon, not yet connected."""
        from ovms_supervisor.client import Client

        return Client(self.settings.socket)

    def arguments(self) -> list[str]:
        """The global options again, for a daemon that is started on behalf of this call."""
        words = [f"--{key.replace('_', '-')}={value}" for key, value in self.flags.items()]
        return [*words, f"--config={self.config_file.absolute()}"] if self.config_file else words


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def run_async(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's asynchronous part; Ctrl-C cancels it and then raises KeyboardInterrupt."""
    import asyncio

    return asyncio.run(main())


def _remember_setting(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and parameter.name:
        context.ensure_object(Invocation).flags[parameter.name] = value


def _remember_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.ensure_object(Invocation).config_file = value


def _remember_format(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Invocation).format = value


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).debug = True


def global_options(*, hidden: bool) -> list[click.Option]:
    """The options that every command takes, before or after its name."""
    shared: dict[str, Any] = {"expose_value": False, "hidden": hidden}
    setting: dict[str, Any] = {**shared, "callback": _remember_setting}
    return [
        click.Option(["--root"], metavar="DIR", help="Where artifacts are kept (OVMS_ROOT).", **setting),
        click.Option(["--run-dir"], metavar="DIR", help="Where machines are kept (OVMS_RUN_DIR).", **setting),
        click.Option(["--socket"], metavar="PATH", help="The daemon's socket (OVMS_SOCKET).", **setting),
        click.Option(
            ["--config"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="The configuration file (OVMS_CONFIG).",
            callback=_remember_config,
            **shared,
        ),
        click.Option(
            ["--format"],
            type=click.Choice(["table", "json"]),
            help="How results are printed; errors follow it.",
            callback=_remember_format,
            **shared,
        ),
        click.Option(
            ["--debug"], is_flag=True, help="Show error codes and tracebacks.", callback=_remember_debug, **shared
        ),
    ]
