"""Parked clones: machines that are restored and stand still before anybody asks for them."""

from ovms_supervisor.pool.pool import Pool

__all__ = ["Pool"]
