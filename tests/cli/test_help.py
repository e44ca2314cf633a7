"""Help and usage, of the real command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from ovms_supervisor.cli.catalogue import ENTRIES
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.main import ovm as group

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm

REPOSITORY = Path(__file__).parents[2]

HEAVY = ("aiohttp", "asyncio", "msgspec", "rich", "structlog", "platformdirs", "lz4", "zstandard", "qemu")


def _command(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_command_of_the_catalogue_exists_and_has_help(name: str) -> None:
    command = _command(name)
    assert isinstance(command, OvmCommand)
    assert command.name == name
    assert command.examples
    text = command.get_help(click.Context(command, info_name=f"ovm {name}"))
    assert "Examples:" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "behind":
            assert parameter.help, f"--{parameter.name} of {name} has no help"


@pytest.mark.parametrize("name", list(ENTRIES))
def test_examples_are_of_options_that_exist(name: str) -> None:
    command = _command(name)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    assert isinstance(command, OvmCommand)
    for example in command.examples:
        for part in re.findall(rf"ovm {name} ([^|$>]*)", example):
            outside_quotes = re.sub(r"'[^']*'", "", part)
            for option in re.findall(r"(?<!\S)(--[a-z-]+|-[a-z])(?=[\s=]|$)", outside_quotes):
                assert option in known, f"{example}: {option}"


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_command_takes_the_global_options(name: str) -> None:
    known = {option for parameter in _command(name).params for option in parameter.opts}
    assert {"--root", "--run-dir", "--socket", "--config", "--format", "--debug"} <= known


def test_help_imports_nothing_heavy() -> None:
    """What keeps ``ovm --help`` fast, counted instead of timed."""
    script = (
        "import sys; sys.argv = ['ovm', '--help']\n"
        "from ovms_supervisor.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in ENTRIES)
    assert "125" in done.stdout


def test_usage_errors_exit_2_and_say_where_help_is(ovm: Ovm) -> None:
    result = ovm("rnu")
    assert (result.code, result.raw) == (2, b"")
    assert "No such command 'rnu'. Did you mean 'run'?" in result.err
    result = ovm("pack", "--kernel", "/nonexistent", "-t", "x")
    assert result.code == 2
    assert "see: ovm pack --help" in result.err
    result = ovm("stop")
    assert result.code == 2


def test_usage_errors_as_json(ovm: Ovm) -> None:
    result = ovm("tag", "x", "UPPER", "--format=json")
    assert result.code == 2
    assert result.problem["code"] == "usage"


def test_global_options_are_taken_before_and_after_the_command(ovm: Ovm) -> None:
    before = ovm.ok("--format", "json", "--root", "/somewhere", "config")
    after = ovm.ok("config", "--format", "json", "--root", "/somewhere")
    assert before == after
    assert '"/somewhere"' in after


def test_config_shows_values_and_origins(ovm: Ovm, tmp_path: Path) -> None:
    values = ovm.json("config")["values"]
    assert values["root"] == {"value": str(ovm.root), "origin": "environment OVMS_ROOT"}
    table = ovm.ok("config")
    assert table.startswith("KEY")
    bad = tmp_path / "bad.toml"
    bad.write_text("[runtimes.qemu]\nbinry = '/x'\n")
    result = ovm("config", "--config", str(bad))
    assert result.code == 1
    assert f"{bad}: unknown key 'runtimes.qemu.binry'" in result.err
    assert "remedy:" in result.err


def test_unknown_variables_are_told(ovm: Ovm) -> None:
    assert "OVMS_ROOTT" in ovm("config", OVMS_ROOTT="/x").err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ovm: Ovm, shell: str) -> None:
    assert "_OVM_COMPLETE" in ovm.ok("completion", shell)


def test_completion_of_commands(ovm: Ovm) -> None:
    result = ovm("sn", _OVM_COMPLETE="bash_complete", COMP_WORDS="ovm sn", COMP_CWORD="1")
    assert "snapshot" in result.out


def test_a_reader_that_has_enough_is_no_error(ovm: Ovm) -> None:
    script = f"{sys.executable} -m ovms_supervisor.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=REPOSITORY, env=ovm.environment, check=True
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
