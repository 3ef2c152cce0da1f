"""CutPaste (CVPR 2021)."""
