"""Fusions: parts of the served graph replaced by cheaper ones with the same answers."""
