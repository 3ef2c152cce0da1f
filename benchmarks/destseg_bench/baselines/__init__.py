"""The systems that the paper compares DeSTSeg with, each written from its description.

``system.py`` is what they have in common, ``catalogue.py`` opens one by its name, ``fitting.py``
trains one and ``scoring.py`` scores a test set with one.
"""
