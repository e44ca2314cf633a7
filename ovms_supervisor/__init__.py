"""Many machines: instances, the supervisor, its API, client and command line."""

__version__ = "0.1.0"
