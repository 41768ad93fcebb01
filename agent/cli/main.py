"""The ``llamesh`` command: reads arguments, imports the one subcommand asked for, runs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from agent import __version__
from agent.config import FIELDS, ConfigError

EXIT_FAILURE = 1
EXIT_USAGE = 2


class UserError(Exception):
    """A failure the user can act on; printed without a traceback, exit status 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parser().parse_args(arguments)
    command: str = options.command
    flags = {
        field.name: text
        for field in FIELDS
        if isinstance(text := getattr(options, field.name, None), str)
    }
    try:
        match command:
            case "serve":
                from agent.cli import serve

                return serve.run(os.environ, flags)
            case "demo":
                from agent.cli import demo

                return demo.run(os.environ, flags, model=options.model, question=options.question)
            case "config":
                from agent.cli import config_show

                return config_show.run(os.environ, flags, as_json=options.json)
            case "status":
                from agent.cli import status

                return status.run(os.environ, flags, as_json=options.json)
            case _:
                assert command == "version"
                print(f"llamesh {__version__}")
                return 0
    except ConfigError as problem:
        print(f"llamesh: configuration: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except UserError as problem:
        print(f"llamesh: {problem}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def parser() -> argparse.ArgumentParser:
    """The argument parser, with a flag for every setting."""
    top = argparse.ArgumentParser(
        prog="llamesh",
        description="One Ollama over all your machines. This release serves one node.",
        allow_abbrev=False,
    )
    top.add_argument("-v", "--version", action="version", version=f"llamesh {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = _command(commands, "serve", "run a node", aliases=["start"])
    serve.set_defaults(command="serve")
    _add_settings(serve)

    demo = _command(commands, "demo", "start a node with a small model and ask it something")
    _add_settings(demo)
    demo.add_argument("--model", default="llamesh-tiny", help="name of the demo's model")
    demo.add_argument("--question", default=None, help="what to ask")

    config = _command(commands, "config", "look at the configuration")
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = _command(actions, "show", "print effective values and where they come from")
    show.add_argument("--json", action="store_true", help="print JSON")
    _add_settings(show)

    status = _command(commands, "status", "ask a running node how it is")
    status.add_argument("--json", action="store_true", help="print the node's answer as it is")
    _add_settings(status, only=("host", "port"))

    _command(commands, "version", "print the version")
    return top


def _command(
    group: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
    name: str,
    summary: str,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    return group.add_parser(
        name, help=summary, description=summary, aliases=aliases, allow_abbrev=False
    )


def _add_settings(command: argparse.ArgumentParser, only: Sequence[str] = ()) -> None:
    group = command.add_argument_group("settings (also keys of config.toml and LLAMESH_* names)")
    for field in FIELDS:
        if not only or field.name in only:
            group.add_argument(
                field.flag, dest=field.name, metavar="VALUE", help=field.help.replace("%", "%%")
            )
