"""Ray clusters: where work may run, the connection, and jobs that Ray hands to workers."""
