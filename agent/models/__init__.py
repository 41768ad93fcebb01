"""Models on disk: names, manifests, blobs, GGUF headers, Modelfiles."""
