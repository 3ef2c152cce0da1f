"""Studies: what each choice of the exporter is worth."""
