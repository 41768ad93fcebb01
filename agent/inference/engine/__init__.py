"""Continuous batching: which tokens run next, where their cache lives, how they are drawn."""
