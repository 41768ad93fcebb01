"""GGUF models built from nothing: random weights, real tokenizers, no download."""
