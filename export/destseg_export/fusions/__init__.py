"""Exact rewrites of the served graph, one a file, each with its formula and its test."""
