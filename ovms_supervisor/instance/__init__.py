"""One instance: its state, its journal, the task that is its life, and the operations on it."""

from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.life import Life, StopOrder

__all__ = ["Instance", "Life", "StopOrder"]
