"""The engine and its runner process, driven over the real socket."""
