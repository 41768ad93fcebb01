"""The runner child process: one model, one socket, one engine thread."""
