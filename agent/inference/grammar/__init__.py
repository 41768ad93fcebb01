"""Output formats as grammars for llama.cpp: JSON mode and JSON Schema. Pure."""

from __future__ import annotations

from agent.inference.grammar.convert import JSON_GRAMMAR, grammar_for, json_schema_to_gbnf

__all__ = ["JSON_GRAMMAR", "grammar_for", "json_schema_to_gbnf"]
