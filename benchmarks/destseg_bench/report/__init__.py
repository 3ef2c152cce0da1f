"""Results as tables: printed by a command, on a page with a figure, and in a README."""
