"""How fast it runs: artifacts and checkpoints, timed beside each other."""
