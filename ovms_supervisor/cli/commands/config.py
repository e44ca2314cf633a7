"""``ovm config``."""

from __future__ import annotations

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from spec.sizes import format_size

_SIZES = frozenset({"clone_budget", "image_budget", "store_limit", "log_limit", "memory"})


@click.command(
    "config",
    cls=OvmCommand,
    examples=["ovm config", "OVMS_CPUS=4 ovm config", "ovm config --format json | jq .values.image_dir"],
)
@pass_invocation
def config_command(invocation: Invocation) -> None:
    """Show each setting and where it comes from.

    A flag wins over the environment (OVMS_<KEY>, for example OVMS_RUNTIMES_QEMU_BINARY for runtimes.qemu.binary),
    the environment over the file (TOML), the file over the defaults. Unknown keys in the file are refused.
    """
    loaded = invocation.load()
    if invocation.json:
        values = {key: {"value": value, "origin": loaded.origins[key]} for key, value in loaded.values.items()}
        output.as_json({"file": str(loaded.file), "file_exists": loaded.file_exists, "values": values})
    else:
        rows = [(key, _shown(key, value), loaded.origins[key]) for key, value in loaded.values.items()]
        output.table(("KEY", "VALUE", "ORIGIN"), rows)
        output.message(f"file: {loaded.file}{'' if loaded.file_exists else ' (not there)'}")
    for variable in loaded.unknown_variables:
        output.message(f"ovm: the environment variable {variable} is no setting and has no effect")


def _shown(key: str, value: object) -> str:
    if value is None:
        return "-"
    return format_size(value) if key in _SIZES and isinstance(value, int) else str(value)
