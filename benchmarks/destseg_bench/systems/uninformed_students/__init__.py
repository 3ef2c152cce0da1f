"""Uninformed Students (CVPR 2020)."""
