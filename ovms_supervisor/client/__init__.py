"""The daemon's API from Python: ``async with Client(socket) as client: await client.start(…)``."""

from ovms_supervisor.client.client import Client

__all__ = ["Client"]
