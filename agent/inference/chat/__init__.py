"""From a conversation to prompt text: templates and the rules around them. Pure."""
