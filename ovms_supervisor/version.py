"""The version of this package, in a module that imports nothing: everything may ask for it."""

from typing import Final

VERSION: Final = "0.1.0"
