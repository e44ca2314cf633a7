"""One virtual machine process: the driver protocol and its two implementations, Cloud Hypervisor and QEMU."""
