"""RAM images in tmpfs, ready to be mapped copy-on-write by any number of VMMs."""

from cache.resident.images import ResidentFigures, ResidentImage, ResidentImages

__all__ = ["ResidentFigures", "ResidentImage", "ResidentImages"]
