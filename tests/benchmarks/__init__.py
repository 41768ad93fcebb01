"""Our node and our runner against llama-server, on the same files and settings."""
