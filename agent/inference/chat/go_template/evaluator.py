"""Runs a parsed Go template over values, within limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.chat.go_template import functions, syntax, values
from agent.inference.chat.go_template.values import Value

OUTPUT_LIMIT_CHARACTERS: Final = 64 * 1024 * 1024
"""Longest text one run may produce."""
INCLUDE_DEPTH_LIMIT: Final = 50
"""Templates within templates, which may call themselves."""

_Flow = Literal["on", "break", "continue"]


@dataclass(slots=True)
class _Scope:
    """Variables of one template call, innermost last."""

    variables: list[tuple[str, Value]]


class Evaluator:
    """One run. ``steps`` bounds its work: about one step for each node and loop round."""

    def __init__(self, defined: Mapping[str, syntax.Block], now: datetime, steps: int) -> None:
        self._defined = defined
        self._now = now
        self._steps_left = steps
        self._output: list[str] = []
        self._length = 0
        self._includes = 0

    def run(self, root: syntax.Block, data: Value) -> str:
        """The text ``root`` gives for ``data``. Raises TemplateError or TemplateLimit."""
        self._block(root, data, _Scope([("$", data)]))
        return "".join(self._output)

    def _step(self, line: int) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise TemplateLimit("template takes too many steps", line)

    def _write(self, text: str, line: int) -> None:
        self._length += len(text)
        if self._length > OUTPUT_LIMIT_CHARACTERS:
            raise TemplateLimit("template output is too long", line)
        self._output.append(text)

    # -- statements --

    def _block(self, block: syntax.Block, dot: Value, scope: _Scope) -> _Flow:
        for statement in block:
            flow = self._statement(statement, dot, scope)
            if flow != "on":
                return flow
        return "on"

    def _statement(self, statement: syntax.Statement, dot: Value, scope: _Scope) -> _Flow:
        self._step(statement.line)
        match statement:
            case syntax.Text():
                self._write(statement.text, statement.line)
            case syntax.Action():
                value = self._pipeline(statement.pipeline, dot, scope)
                if not statement.pipeline.targets:
                    self._write(values.printed(value), statement.line)
            case syntax.If():
                mark = len(scope.variables)
                condition = self._pipeline(statement.condition, dot, scope)
                taken = statement.body if values.truth(condition) else statement.otherwise
                flow = self._block(taken, dot, scope)
                del scope.variables[mark:]
                return flow
            case syntax.With():
                mark = len(scope.variables)
                subject = self._pipeline(statement.subject, dot, scope)
                if values.truth(subject):
                    flow = self._block(statement.body, subject, scope)
                else:
                    flow = self._block(statement.otherwise, dot, scope)
                del scope.variables[mark:]
                return flow
            case syntax.Range():
                mark = len(scope.variables)
                flow = self._range(statement, dot, scope)
                del scope.variables[mark:]
                return flow
            case syntax.Include():
                self._include(statement, dot, scope)
            case syntax.Break():
                return "break"
            case syntax.Continue():
                return "continue"
        return "on"

    def _range(self, statement: syntax.Range, dot: Value, scope: _Scope) -> _Flow:
        subject = statement.subject
        value = self._operands(subject, dot, scope)
        if isinstance(value, int) and not isinstance(value, bool):
            self._steps_left -= max(value, 0)
            self._step(statement.line)
            value = tuple[Value, ...](range(value))
        if value is not None and values.items_of(value) is None and not values.is_map(value):
            raise TemplateError(
                f"range can't iterate over a value of type {values.type_name(value)}",
                statement.line,
            )
        if not values.truth(value):
            return self._block(statement.otherwise, dot, scope)
        for key, item in values.entries_of(value):
            self._step(statement.line)
            mark = len(scope.variables)
            pairs = (item,) if len(subject.targets) == 1 else (key, item)
            for name, part in zip(subject.targets, pairs, strict=False):
                if subject.declares:
                    scope.variables.append((name, part))
                else:
                    self._assign(scope, name, part, statement.line)
            flow = self._block(statement.body, item, scope)
            del scope.variables[mark:]
            if flow == "break":
                break
        return "on"

    def _include(self, statement: syntax.Include, dot: Value, scope: _Scope) -> None:
        body = self._defined.get(statement.name)
        if body is None:
            raise TemplateError(f"template {statement.name!r} not defined", statement.line)
        argument = (
            None if statement.argument is None else self._pipeline(statement.argument, dot, scope)
        )
        self._includes += 1
        if self._includes > INCLUDE_DEPTH_LIMIT:
            raise TemplateLimit("templates include each other too deep", statement.line)
        self._block(body, argument, _Scope([("$", argument)]))
        self._includes -= 1

    # -- pipelines --

    def _pipeline(self, pipeline: syntax.Pipeline, dot: Value, scope: _Scope) -> Value:
        value = self._operands(pipeline, dot, scope)
        for name in pipeline.targets:
            if pipeline.declares:
                scope.variables.append((name, value))
            else:
                self._assign(scope, name, value, pipeline.line)
        return value

    def _operands(self, pipeline: syntax.Pipeline, dot: Value, scope: _Scope) -> Value:
        """The value of the commands, without giving it to the targets."""
        value: Value = None
        for position, command in enumerate(pipeline.commands):
            value = self._command(command, dot, scope, (value,) if position else ())
        return value

    def _assign(self, scope: _Scope, name: str, value: Value, line: int) -> None:
        for position in range(len(scope.variables) - 1, -1, -1):
            if scope.variables[position][0] == name:
                scope.variables[position] = (name, value)
                return
        raise TemplateError(f"undefined variable {name!r}", line)

    def _command(
        self, command: syntax.Command, dot: Value, scope: _Scope, piped: tuple[Value, ...]
    ) -> Value:
        self._step(command.line)
        first, *rest = command.operands
        if not isinstance(first, syntax.FunctionName):
            if rest or piped:
                raise TemplateError("can't give arguments to something not a function", first.line)
            return self._operand(first, dot, scope)
        if first.name in ("and", "or"):
            return self._lazy(first, rest, dot, scope, piped)
        arguments = [*(self._operand(operand, dot, scope) for operand in rest), *piped]
        return functions.call(first.name, arguments, first.line, self._now)

    def _lazy(
        self,
        function: syntax.FunctionName,
        rest: list[syntax.Operand],
        dot: Value,
        scope: _Scope,
        piped: tuple[Value, ...],
    ) -> Value:
        """``and`` and ``or`` stop at the first argument that decides."""
        if not rest and not piped:
            raise TemplateError(f"missing argument for {function.name}", function.line)
        value: Value = None
        for operand in rest:
            value = self._operand(operand, dot, scope)
            if values.truth(value) == (function.name == "or"):
                return value
        return piped[0] if piped else value

    def _operand(self, operand: syntax.Operand, dot: Value, scope: _Scope) -> Value:
        match operand:
            case syntax.Field():
                return _walk(dot, operand.path, operand.line)
            case syntax.Variable():
                return _walk(self._variable(scope, operand), operand.path, operand.line)
            case syntax.Literal():
                return operand.value
            case syntax.Dot():
                return dot
            case syntax.Pipeline():
                return self._pipeline(operand, dot, scope)
            case syntax.Chain():
                base = self._pipeline(operand.base, dot, scope)
                return _walk(base, operand.path, operand.line)
            case syntax.FunctionName():
                return functions.call(operand.name, (), operand.line, self._now)

    def _variable(self, scope: _Scope, operand: syntax.Variable) -> Value:
        for name, value in reversed(scope.variables):
            if name == operand.name:
                return value
        raise TemplateError(f"undefined variable {operand.name!r}", operand.line)


def _walk(value: Value, path: tuple[str, ...], line: int) -> Value:
    for name in path:
        value = values.field(value, name, line)
    return value
