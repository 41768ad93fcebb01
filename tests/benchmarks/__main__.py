"""``make bench``: run the cells, keep every round, print the verdicts.

    python -m tests.benchmarks                      # everything, ten rounds a cell
    python -m tests.benchmarks --quick              # two rounds of two cells, to try it out
    python -m tests.benchmarks --cells short-1,shared-prefix --rounds 20
    python -m tests.benchmarks --write-docs         # also put the tables into docs/benchmarks.md

Raw results go to ``.cache/bench/``. The exit status does not depend on any time measured.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from agent import builtin
from tests.benchmarks import overhead
from tests.benchmarks.cells import CELLS, Cell, run_cell
from tests.benchmarks.llama_server import ROOT, ensure_server, installed_version
from tests.benchmarks.model import ensure_model
from tests.benchmarks.report import CellResult, Results, Round, markdown, verdicts
from tests.benchmarks.sides import (
    MODEL,
    LlamaServer,
    Measured,
    Node,
    Runner,
    Setting,
    Side,
    warm,
)
from tests.models.live_node import LiveNode
from tests.models.ollama_store import add_model

CACHE: Final = ROOT / ".cache" / "bench"
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
MARK: Final = "<!-- results -->"
ROUNDS: Final = 10
QUICK_ROUNDS: Final = 2
QUICK_CELLS: Final = ("short-1", "short-4")
QUICK_LAYERS: Final = 4
SLOTS: Final = 16
CONTEXT: Final = 2048
OWN_COSTS: Final = ("added", "idle", "start")
SIDES: Final = ("llama-server", "runner", "node")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    # Leave through the contexts, so that no server is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    random_source = random.Random(options.seed)
    model = ensure_model(CACHE, **({"layers": QUICK_LAYERS} if options.quick else {}))
    setting = Setting(model=model, threads=options.threads, slots=options.slots, context=CONTEXT)
    results = Results(
        command="python -m tests.benchmarks " + " ".join(arguments or sys.argv[1:]),
        started=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine(),
        settings={
            "model": f"{model.name}, {model.stat().st_size / 1e6:.0f} MB",
            "threads": str(setting.threads),
            "slots": str(setting.slots),
            "context per stream": str(setting.context),
            "sampling": "top_k 40, top_p 0.9, temperature 0.8",
            "llama-cpp-python": installed_version(),
        },
    )
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    target = CACHE / f"results-{stamp}.json"
    with tempfile.TemporaryDirectory(prefix="llamesh-bench-") as name:
        folder = Path(name)
        cells = [cell for cell in CELLS if cell.name in options.cells]
        if cells:
            with ExitStack() as stack:
                sides = start_sides(stack, setting, folder, options)
                for side in sides:
                    for _ in range(2):
                        warm(side, random_source, setting.slots)
                for cell in cells:
                    rounds = run_cell(cell, sides, rounds=options.rounds, seed=options.seed)
                    done = (*results.cells, kept(cell, rounds))
                    results = msgspec.structs.replace(results, cells=done)
                    save(results, target)
        results = own_costs(results, folder, options)
        save(results, target)
    for verdict in verdicts(results):
        mark = "reached" if verdict.reached else "NOT reached"
        print(f"{verdict.what:48} {verdict.measured}  {verdict.bar}  {mark}")
    print(f"raw results: {target}")
    if options.write_docs:
        write_document(results)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line; unknown cells and sides are refused with the list of known ones."""
    names = (*(cell.name for cell in CELLS), *OWN_COSTS)
    parser = argparse.ArgumentParser(description="Benchmarks against llama-server.")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cells", type=lambda text: text.split(","), default=None)
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--source-archive", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.cells = options.cells or list(QUICK_CELLS if options.quick else names)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    for given, known in ((options.cells, names), (options.sides, SIDES)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return options


def start_sides(
    stack: ExitStack, setting: Setting, folder: Path, options: argparse.Namespace
) -> list[Side]:
    """All wanted sides, running until ``stack`` unwinds."""
    sides: list[Side] = []
    if "llama-server" in options.sides:
        binary = ensure_server(options.jobs, options.source_archive)
        sides.append(stack.enter_context(LlamaServer(binary, setting, folder)))
    if "runner" in options.sides:
        sides.append(stack.enter_context(Runner(setting, folder)))
    if "node" in options.sides:
        store = folder / "store"
        add_model(store, MODEL, setting.model)
        live = LiveNode(
            home=folder / "node",
            models=store,
            environment={
                "LLAMESH_CPU_THREADS": str(setting.threads),
                # Alone while it is measured, as llama-server is.
                "LLAMESH_CPU_WAIT": "spin",
                "OLLAMA_NUM_PARALLEL": str(setting.slots),
                "OLLAMA_CONTEXT_LENGTH": str(setting.context),
                "OLLAMA_KEEP_ALIVE": "-1",
            },
        )
        sides.append(Node(stack.enter_context(live), setting))
    return sides


def own_costs(results: Results, folder: Path, options: argparse.Namespace) -> Results:
    """The cells that only concern our own agent."""
    store = folder / "tiny-store"
    add_model(store, builtin.NAME, builtin.MODEL_PATH)
    if "idle" in options.cells:
        with LiveNode(home=folder / "idle", models=store) as live:
            results = msgspec.structs.replace(results, idle=overhead.idle(live))
    if "added" in options.cells:
        setting = overhead.tiny_setting(builtin.MODEL_PATH, 1)
        with (
            LiveNode(home=folder / "added", models=store) as live,
            Runner(setting, folder) as runner,
        ):
            node = Node(live, setting, builtin.NAME)
            taken = overhead.added_ms(node, runner, rounds=options.rounds, seed=options.seed)
            results = msgspec.structs.replace(results, added_ms=taken)
    if "start" in options.cells:
        taken = overhead.start_s(folder, store, builtin.NAME, rounds=options.rounds)
        results = msgspec.structs.replace(results, start_s=taken)
    return results


def kept(cell: Cell, rounds: dict[str, list[Measured]]) -> CellResult:
    """A cell as the results file holds it."""
    bars = {"runner": cell.runner_bar, "node": cell.node_bar, "first": cell.first_bar}
    return CellResult(
        name=cell.name,
        sides={
            side: tuple(
                Round(one.tokens, one.wall_s, one.first_s, one.cpu_s, one.agent_cpu_s)
                for one in measured
            )
            for side, measured in rounds.items()
        },
        bars={name: (bar.direction, bar.value) for name, bar in bars.items()},
    )


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }


def save(results: Results, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


def write_document(results: Results) -> None:
    """Replace everything below the mark of ``docs/benchmarks.md``."""
    head = DOCUMENT.read_text(encoding="utf-8").partition(MARK)[0]
    DOCUMENT.write_text(f"{head}{MARK}\n\n{markdown(results)}", encoding="utf-8")
    print(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    sys.exit(main())
