"""One contract, one file per back end; each imports its library when it is opened."""
