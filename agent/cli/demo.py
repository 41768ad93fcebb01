"""``llamesh demo``: a node with the built-in model, asked through the official Ollama client."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio

from agent import builtin, config
from agent.cli.main import UserError
from agent.cli.serve import serve_configured

QUESTION: Final = "What is the capital of France?"
ANSWER_LIMIT_TOKENS: Final = 64


def run(
    environ: Mapping[str, str], flags: Mapping[str, str], *, model: str, question: str | None
) -> int:
    """Serve until Ctrl-C; the question is asked once the node answers.

    Without a home directory chosen, everything is kept in a temporary one and removed at the
    end. Raises ConfigError and UserError.
    """
    if importlib.util.find_spec("ollama") is None:
        raise UserError(
            "the demo asks through the official Ollama client; install it with: pip install ollama"
        )
    with tempfile.TemporaryDirectory(prefix="llamesh-demo-") as scratch:
        chosen = "home" in flags or environ.get(config.HOME_VARIABLE)
        where = flags if chosen else {**flags, "home": scratch}
        quiet = {"LLAMESH_LOG_LEVEL": "warning", **environ}

        async def ask(url: str) -> None:
            await trio.to_thread.run_sync(
                converse, url, model, question or QUESTION, abandon_on_cancel=True
            )

        serve_configured(config.load(quiet, where), when_ready=ask)
    return 0


def converse(url: str, model: str, question: str) -> None:
    """Install the built-in model through the API if needed, ask, print the answer as it comes."""
    import httpx
    import ollama

    # The environment may name a proxy, which must not see a request to this machine.
    client = ollama.Client(host=url, trust_env=False)
    try:
        print(f"node      {url}")
        if model not in {
            str(entry.model).removesuffix(":latest") for entry in client.list().models
        }:
            _install(client, model, builtin.MODEL_PATH)
        print(f"model     {model}\nquestion  {question}\nanswer    ", end="", flush=True)
        stream = client.chat(  # pyright: ignore[reportUnknownMemberType]
            model=model,
            messages=[{"role": "user", "content": question}],
            options={"temperature": 0, "num_predict": ANSWER_LIMIT_TOKENS},
            stream=True,
        )
        tokens = seconds = 0.0
        for part in stream:
            print(part.message.content or "", end="", flush=True)
            if part.done:
                tokens = float(part.eval_count or 0)
                seconds = (part.eval_duration or 0) / 1e9
        speed = f", {tokens / seconds:.0f} tokens/s" if seconds > 0 else ""
        print(f"\n          ({tokens:.0f} tokens{speed})\n")
        print(f"The node goes on. In another terminal:\n\n    {_curl(url, model)}\n")
        print("Ctrl-C stops it.", flush=True)
    except (ollama.ResponseError, httpx.HTTPError) as problem:
        print(f"\nllamesh: the question failed: {problem}", file=sys.stderr)


def _install(client: object, model: str, path: Path) -> None:
    import ollama

    assert isinstance(client, ollama.Client)
    digest = client.create_blob(path)
    client.create(model=model, files={path.name: digest})


def _curl(url: str, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    return f"curl {url}/api/chat -d {shlex.quote(json.dumps(body))}"
