"""How the built-in model was trained; not part of any test run."""
