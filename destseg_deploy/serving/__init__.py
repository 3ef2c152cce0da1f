"""An artifact behind HTTP on this machine: a page for people, and KServe v2 for programs."""
