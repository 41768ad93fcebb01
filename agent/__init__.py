"""The llamesh agent: one per machine, the same on every machine."""

__version__ = "0.1.0"
