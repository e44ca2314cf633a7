"""``ovm doctor``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import exit_codes, output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.terminal import neutral_line

if TYPE_CHECKING:
    from ovms_supervisor.cli.doctor.finding import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_INDENT = "      "


@click.command("doctor", cls=OvmCommand, examples=["ovm doctor", "ovm doctor --format json | jq '.findings[].level'"])
@pass_invocation
def doctor_command(invocation: Invocation) -> None:
    """Check what this host can do: what was seen, why it matters, and how to mend it.

    ok: fine. warn: machines run, with less than the host could give. fail: no machine can run, and the exit code
    is 1. No privileges and no daemon are needed.
    """
    from ovms_supervisor.cli.doctor.checks import examine
    from ovms_supervisor.cli.doctor.finding import Level

    findings = run_async(lambda: examine(invocation.settings))
    failed = [each for each in findings if each.level is Level.FAIL]
    if invocation.json:
        output.as_json({"can_run": not failed, "findings": findings})
    else:
        for each in findings:
            _print(each)
        counts = ", ".join(f"{sum(each.level is level for each in findings)} {level}" for level in Level)
        output.message(f"{counts}: {'no machine can run here' if failed else 'machines can run here'}")
    sys.exit(exit_codes.FAILED if failed else exit_codes.OK)


def _print(finding: Finding) -> None:
    level = click.style(f"{finding.level:<4}", fg=_COLOURS[finding.level])
    click.echo(f"{level}  {finding.check}: {neutral_line(finding.figure)}", color=_colour())
    if finding.why:
        click.echo(f"{_INDENT}{neutral_line(finding.why)}")
    if finding.remedy:
        click.echo(f"{_INDENT}remedy: {neutral_line(finding.remedy)}")


def _colour() -> bool | None:
    """No colours if NO_COLOR is set (no-color.org); else click decides by whether stdout is a terminal."""
    import os

    return False if os.environ.get("NO_COLOR") else None
