"""Ollama's native HTTP API."""
