"""The entry point: parse, run, and turn every error into a message and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from ovms_supervisor.cli import exit_codes, output
from ovms_supervisor.cli.grammar import LazyGroup
from ovms_supervisor.cli.invocation import Invocation
from ovms_supervisor.version import VERSION
from spec.errors import InternalError, NoSpace, OvmsError, PermissionMissing


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(VERSION, prog_name="ovm")
@click.pass_context
def ovm(context: click.Context) -> None:
    """Virtual machines from OCI artifacts: pack, run, snapshot, clone."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> NoReturn:
    """Run ``ovm`` with the arguments of this process and exit."""
    invocation = Invocation()
    try:
        # standalone_mode=False: click would print errors its own way, and exit 1 for all of ours
        status = ovm.main(prog_name="ovm", standalone_mode=False, obj=invocation)
        sys.exit(status if isinstance(status, int) else exit_codes.OK)
    except click.exceptions.Abort:
        sys.exit(exit_codes.INTERRUPTED)
    except click.ClickException as error:
        _report_usage(error, invocation)
        sys.exit(exit_codes.USAGE)
    except Exception as error:
        ours = _as_ours(error)
        output.error(ours, json=invocation.json, debug=invocation.debug)
        if invocation.debug:
            import traceback

            traceback.print_exception(error)
        sys.exit(exit_codes.exit_code(ours, invocation.command))


def _as_ours(error: Exception) -> OvmsError:
    """The error of the tree for any exception; of a group the first one that tells more than a bug would."""
    while isinstance(error, ExceptionGroup):
        known, _ = error.split(OvmsError)
        error = (known or error).exceptions[0]
    if isinstance(error, OvmsError):
        return error
    if isinstance(error, PermissionError):
        return PermissionMissing(f"{error.filename}: {error.strerror}")
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return NoSpace(f"{error.filename or 'writing'}: {error.strerror}")
    return InternalError(
        f"{type(error).__name__}: {error}", remedy="Please report it with the output of the same command and --debug."
    )


_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


def _report_usage(error: click.ClickException, invocation: Invocation) -> None:
    if invocation.json:
        import msgspec

        problem = {"code": "usage", "title": "Wrong usage", "detail": error.format_message()}
        output.message(msgspec.json.encode(problem).decode())
        return
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ovm"
    output.message(f"ovm: {error.format_message()}")
    output.message(f"  see: {path} --help")
