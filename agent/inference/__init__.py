"""Running models: supervised runner processes and everything in front of them."""
