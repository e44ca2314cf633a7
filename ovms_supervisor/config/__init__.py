"""Configuration: defaults < TOML file < environment < flags, each value with its origin."""

from ovms_supervisor.config.load import Loaded, load
from ovms_supervisor.config.settings import MlockPolicy, OnExit, Settings

__all__ = ["Loaded", "MlockPolicy", "OnExit", "Settings", "load"]
