"""What the README shows of ``ovm`` is what ``ovm`` says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovms_supervisor.cli.catalogue import ENTRIES

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks() -> list[str]:
    if not README.exists():
        pytest.skip("no README yet")
    return _BLOCK.findall(README.read_text())


def test_help_in_the_readme_is_the_real_help(ovm: Ovm) -> None:
    shown = [block for block in _blocks() if re.match(r"\$ ovm .*--help\n", block)]
    for block in shown:
        command, _, text = block.partition("\n")
        assert ovm.ok(*shlex.split(command.removeprefix("$ ovm "))).strip() == text.strip(), command


def test_commands_in_the_readme_exist() -> None:
    for block in _blocks():
        for command in re.findall(r"^\$ (?:sudo )?(?:\.venv/bin/)?ovm ((?:--?\S+ )*)(\S+)", block, re.MULTILINE):
            word = command[1]
            assert word in ENTRIES or word.startswith("-"), f"ovm {word}"
