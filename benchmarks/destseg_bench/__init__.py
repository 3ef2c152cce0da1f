"""The measure: what the library and its exported artifacts do, with the machine that did it."""
