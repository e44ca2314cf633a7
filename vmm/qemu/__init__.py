"""QEMU: the runtime that works everywhere, on KVM where the CPU has it and with an emulated CPU elsewhere."""

from vmm.qemu.driver import Qemu

__all__ = ["Qemu"]
