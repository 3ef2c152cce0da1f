"""The server back end: another program runs the artifact."""
