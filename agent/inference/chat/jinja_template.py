"""A GGUF's own Jinja chat template.

Templates are written against Hugging Face's environment: blocks trimmed, loop controls, a
``generation`` tag, ``raise_exception``, ``strftime_now``, a ``tojson`` that escapes nothing for
HTML. Many refuse a conversation shape they were not trained on, so rendering tries the messages
as they are first and then, step by step, shapes such templates accept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from jinja2 import Template, TemplateSyntaxError
from jinja2.exceptions import TemplateError as JinjaError

from agent.inference.chat.conversation import Conversation
from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.chat.jinja_sandbox import ChatEnvironment, Refused, instrumented
from agent.inference.chat.message_shapes import shapes, standard_roles
from agent.inference.chat.work_budget import WorkBudget, spending

SOURCE_LIMIT_CHARACTERS: Final = 1 << 20
OUTPUT_LIMIT_CHARACTERS: Final = 64 * 1024 * 1024
BASE_STEPS: Final = 200_000
STEPS_PER_MESSAGE: Final = 5_000
"""A run may take BASE_STEPS and this much more for each message and tool."""
COMPILED_LIMIT: Final = 32
"""Compiled templates kept."""


@dataclass(frozen=True, slots=True)
class JinjaTemplate:
    """A compiled template."""

    compiled: Template

    def render(self, conversation: Conversation) -> str:
        """The prompt of a conversation.

        A last assistant message without tool calls is taken as the beginning of the answer: it
        follows the generation prompt. Raises TemplateError when no accepted shape is found,
        with the reason the template gave for the messages as they were.
        """
        messages = tuple(standard_roles(conversation.messages))
        opening = ""
        if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
            opening = messages[-1].content
            messages = messages[:-1]
        steps = BASE_STEPS + STEPS_PER_MESSAGE * (len(messages) + len(conversation.tools))
        budget = WorkBudget(steps)
        first_failure: TemplateError | None = None
        with spending(budget):
            for shape in shapes(messages):
                try:
                    return self._render_once(shape, conversation) + opening
                except TemplateLimit:
                    raise
                except TemplateError as failure:
                    first_failure = first_failure or failure
        if first_failure is None:
            raise TemplateError("there is nothing to render")
        raise first_failure

    def _render_once(
        self, messages: Sequence[Mapping[str, object]], conversation: Conversation
    ) -> str:
        def strftime_now(pattern: object) -> str:
            return conversation.now.strftime(str(pattern)[:256])

        variables: dict[str, object] = {
            "messages": messages,
            "bos_token": conversation.bos_text,
            "eos_token": conversation.eos_text,
            "add_generation_prompt": True,
            "strftime_now": strftime_now,
        }
        if conversation.tools:
            variables["tools"] = list(conversation.tools)
        if conversation.think is not None:
            variables["enable_thinking"] = conversation.think
            variables["thinking"] = conversation.think
        if conversation.think_level:
            variables["reasoning_effort"] = conversation.think_level
        pieces: list[str] = []
        length = 0
        try:
            for piece in self.compiled.generate(variables):
                length += len(piece)
                if length > OUTPUT_LIMIT_CHARACTERS:
                    raise TemplateLimit("template output is too long")
                pieces.append(piece)
        except TemplateError:
            raise
        except Refused as error:
            raise TemplateError(str(error)) from error
        except JinjaError as error:
            raise TemplateError(error.message or str(error)) from error
        except RecursionError as error:
            raise TemplateLimit("template is nested too deep") from error
        except MemoryError as error:
            raise TemplateLimit("template needs too much memory") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # Python's own complaints about what the template did with its values.
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        return "".join(pieces)


@lru_cache(maxsize=COMPILED_LIMIT)
def compile_jinja(source: str) -> JinjaTemplate:
    """Compile a template; the last COMPILED_LIMIT are kept. Raises TemplateError."""
    if len(source) > SOURCE_LIMIT_CHARACTERS:
        raise TemplateLimit(f"template is longer than {SOURCE_LIMIT_CHARACTERS} characters")
    environment = ChatEnvironment()
    try:
        tree = instrumented(environment.parse(source))
        code = environment.compile(tree)
        compiled = environment.template_class.from_code(
            environment, code, environment.make_globals(None)
        )
    except TemplateSyntaxError as error:
        raise TemplateError(error.message or str(error), error.lineno) from error
    except RecursionError as error:
        raise TemplateLimit("template is nested too deep") from error
    except (JinjaError, SyntaxError, ValueError, MemoryError, OverflowError) as error:
        raise TemplateError(str(error)) from error
    return JinjaTemplate(compiled)
