"""What a browser shows: pictures as small data, and HTML files that need nothing else."""
