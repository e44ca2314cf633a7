"""The shape of ``ovm``: a group that imports a command when it is called, and commands that take global options."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import click

from ovms_supervisor.cli.catalogue import ENTRIES, SECTIONS
from ovms_supervisor.cli.exit_codes import HELP as EXIT_CODES_HELP
from ovms_supervisor.cli.invocation import Invocation, global_options

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OvmCommand(click.Command):
    """A command that also takes the global options, and shows examples at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", _SETTINGS)
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params.extend(global_options(hidden=True))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Examples, and where the rest is told."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {example}\n")
        formatter.write("\nGlobal options such as --format json and --root are listed by 'ovm --help'.\n")


class LazyGroup(click.Group):
    """``ovm`` itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", _SETTINGS)
        super().__init__(*args, **kwargs)
        self.params.extend(global_options(hidden=False))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All names, without an import."""
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        ctx.ensure_object(Invocation).command = cmd_name
        module = importlib.import_module(f"ovms_supervisor.cli.commands.{entry.module}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a guess at what was meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], ENTRIES, n=1) if args else []
            guess = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{guess}" if args else error.message, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The table, by section."""
        width = max(map(len, ENTRIES))
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.summary) for name, entry in entries.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Exit codes."""
        formatter.write(f"\n{EXIT_CODES_HELP}\n")
