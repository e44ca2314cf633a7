"""Cloud Hypervisor: its HTTP API, its configuration, and the driver made of them."""

from vmm.cloud_hypervisor.driver import CloudHypervisor

__all__ = ["CloudHypervisor"]
