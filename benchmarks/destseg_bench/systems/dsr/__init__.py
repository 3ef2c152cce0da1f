"""DSR (ECCV 2022)."""
