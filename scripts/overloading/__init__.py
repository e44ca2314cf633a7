"""Clients that ask for far too much, and what becomes of the daemon meanwhile. Run by scripts/overload."""
