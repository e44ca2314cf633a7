"""RAM images in tmpfs, ready to be mapped copy-on-write by any number of VMMs."""

from cache.resident.images import ResidentFigures, ResidentImage, ResidentImages, ResidentUse

__all__ = ["ResidentFigures", "ResidentImage", "ResidentImages", "ResidentUse"]
