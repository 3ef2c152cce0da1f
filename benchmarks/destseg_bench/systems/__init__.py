"""The systems of Table S4, trained and timed beside DeSTSeg."""
