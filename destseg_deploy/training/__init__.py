"""Training: from a folder of normal images to a checkpoint. `run.train` is the way in."""
