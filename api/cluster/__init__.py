"""Health, metrics and version of the node."""
