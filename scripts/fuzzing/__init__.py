"""Fuzzing of whatever is read of what others wrote. Run by scripts/fuzz."""
