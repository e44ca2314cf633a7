"""``ovm completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from spec.errors import InternalError


@click.command(
    "completion",
    cls=OvmCommand,
    examples=[
        "ovm completion bash > /etc/bash_completion.d/ovm",
        'ovm completion zsh > "${fpath[1]}/_ovm"',
        "ovm completion fish > ~/.config/fish/completions/ovm.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL: bash (4.4 or later), zsh or fish."""
    kind = get_completion_class(shell)
    if kind is None:
        raise InternalError(f"click has no completion for {shell}")
    output.data(kind(context.find_root().command, {}, "ovm", "_OVM_COMPLETE").source())
