"""Results as a page: tables in Markdown, a figure, and the tables of the README."""
