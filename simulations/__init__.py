"""Deterministic worlds that run the production control code, one per seed."""
