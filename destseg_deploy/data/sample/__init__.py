"""A drawn category, to try everything without a data set."""
