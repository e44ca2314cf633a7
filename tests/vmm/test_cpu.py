"""The host CPU, from text."""

from __future__ import annotations

import pytest

from vmm.cpu import host_cpu, parse_cpuinfo

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor @ 2.80GHz
flags\t\t: fpu vme vmx lm
bugs\t\t:

processor\t: 1
vendor_id\t: Other
flags\t\t: fpu
"""


def test_the_first_processor_speaks_for_all() -> None:
    cpu = parse_cpuinfo(INTEL)
    assert (cpu.vendor, cpu.model) == ("GenuineIntel", "Intel(R) Xeon(R) Processor @ 2.80GHz")
    assert cpu.flags == {"fpu", "vme", "vmx", "lm"}
    assert cpu.has_hardware_virtualisation


@pytest.mark.parametrize(("flags", "expected"), [("fpu svm", True), ("fpu vmx", True), ("fpu vmx_x svml", False)])
def test_hardware_virtualisation_is_a_flag(flags: str, expected: bool) -> None:
    assert parse_cpuinfo(f"flags : {flags}\n").has_hardware_virtualisation is expected


def test_text_that_is_no_cpuinfo() -> None:
    assert parse_cpuinfo("").flags == frozenset()


def test_this_host() -> None:
    assert "fpu" in host_cpu().flags
