"""PatchCore (CVPR 2022)."""
