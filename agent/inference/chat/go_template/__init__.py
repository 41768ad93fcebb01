"""Go text/template as far as chat templates use it: reading, running, Ollama's rules."""

from agent.inference.chat.go_template.conversation import (
    GoTemplate,
    TemplateValues,
    parse_go_template,
)

__all__ = ["GoTemplate", "TemplateValues", "parse_go_template"]
