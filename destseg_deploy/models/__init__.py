"""The DeSTSeg networks, their weights, and the module that is exported (needs torch)."""
