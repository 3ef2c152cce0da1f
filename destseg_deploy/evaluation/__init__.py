"""How well an artifact detects: metrics, curves, worst errors and the report."""
