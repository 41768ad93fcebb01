"""HTTP adapters: translate a protocol, call the agent, translate back."""
