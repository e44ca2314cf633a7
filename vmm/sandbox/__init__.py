"""Confining a VMM: namespaces, a uid and a view of the file system of its own, and as little else as it needs."""
