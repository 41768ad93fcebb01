"""The private mesh between member nodes (arrives with the mesh work)."""
