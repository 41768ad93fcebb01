"""The replicated log behind the cluster state (arrives with the consensus work)."""
