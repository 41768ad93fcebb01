"""Cells, verdicts and tables, on made-up rounds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as entry
from tests.benchmarks.cells import CELLS, Cell, order_of, run_cell
from tests.benchmarks.model import bench_tokenizer, draw_prefix, draw_prompt
from tests.benchmarks.report import CellResult, Results, Round, markdown, verdicts
from tests.benchmarks.sides import Load, Measured


class Scripted:
    """A side that needs a fixed time for each token."""

    def __init__(self, name: str, token_s: float) -> None:
        self.name = name
        self._token_s = token_s
        self.loads: list[Load] = []

    def run(self, load: Load) -> Measured:
        self.loads.append(load)
        tokens = len(load.prompts) * load.new_tokens
        first_s = tuple(0.1 * self._token_s for _ in load.prompts)
        return Measured(tokens=tokens, wall_s=tokens * self._token_s, first_s=first_s, cpu_s=1.0)


def rounds_of(token_s: float, count: int) -> tuple[Round, ...]:
    return tuple(Round(100, 100 * token_s, (token_s,) * 4, 0.5, 0.1) for _ in range(count))


def results_with(runner_s: float, node_s: float) -> Results:
    sides = {
        "llama-server": rounds_of(0.01, 10),
        "runner": rounds_of(runner_s, 10),
        "node": rounds_of(node_s, 10),
    }
    bars = {
        "runner": ("at least", 1.0),
        "node": ("at least", 0.97),
        "first": ("at most", 1.0),
    }
    return Results(
        command="bench",
        started="today",
        machine={"cores": "2"},
        settings={"threads": "2"},
        cells=(CellResult("short-1", sides, bars),),
        added_ms={"node": (4.0, 5.0, 6.0), "runner": (2.0, 2.0, 2.0)},
        start_s={"first HTTP answer": (1.0, 1.1), "first token": (1.5, 1.6)},
        idle={"resident_mb": 90.0, "cpu_percent": 0.5},
    )


def test_every_verdict_of_a_fast_engine_is_reached() -> None:
    found = verdicts(results_with(0.0095, 0.01))
    assert [verdict.what for verdict in found if not verdict.reached] == []
    assert len(found) == 8


def test_a_slow_node_is_called_slow() -> None:
    missed = [verdict.what for verdict in verdicts(results_with(0.01, 0.02)) if not verdict.reached]
    assert missed == ["short-1: node tokens/s", "short-1: node first token"]


def test_the_tables_name_every_side_and_every_missed_bar() -> None:
    text = markdown(results_with(0.01, 0.02))
    assert "| short-1 | llama-server | 100.0 | 10 | 5.00 | 1.00 |" in text
    assert "| short-1: node tokens/s | 0.500 [0.500, 0.500] | 10 | at least 0.97 | **no** |" in text
    assert "| short-1: runner tokens/s | 1.000 [1.000, 1.000] | 10 | at least 1 | yes |" in text


def test_all_sides_get_the_same_load_and_no_round_repeats_a_prompt() -> None:
    sides = [Scripted("a", 0.001), Scripted("b", 0.002)]
    cell = Cell(name="c", streams=3, words=8, new_tokens=2)
    results = run_cell(cell, sides, rounds=3, seed=1, settle_s=0, report=lambda _: None)
    assert [load.prompts for load in sides[0].loads] == [load.prompts for load in sides[1].loads]
    prompts = [prompt for load in sides[0].loads for prompt in load.prompts]
    assert len(set(prompts)) == 9
    assert [len(measured) for measured in results.values()] == [3, 3]


def test_the_order_turns_from_round_to_round() -> None:
    assert [order_of(3, number) for number in range(3)] == [(0, 1, 2), (2, 1, 0), (0, 1, 2)]


def test_shared_prefixes_are_shared_and_a_thousand_tokens_long() -> None:
    (cell,) = [cell for cell in CELLS if cell.prefix_tokens]
    load = cell.load(random.Random(3))
    prefix = draw_prefix(random.Random(3), cell.prefix_tokens)
    assert len(load.prompts) == len(set(load.prompts)) == 8
    assert all(prompt.startswith(prefix + " ") for prompt in load.prompts)
    assert 1_000 <= len(bench_tokenizer().encode(prefix)) <= 1_020


def test_the_bench_vocabulary_spells_any_text() -> None:
    tokenizer = bench_tokenizer()
    text = draw_prompt(random.Random(1), 400) + " Ünïcode 42"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == 32_000
    assert len(tokenizer.encode(text)) < 420


def test_unknown_cells_are_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        entry.parse(["--cells", "short-1,nonsense"])
    assert "unknown: nonsense; known: short-1, short-4" in capsys.readouterr().err


def test_the_document_keeps_its_text_and_gets_new_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"# Text\n\n{entry.MARK}\n\nold tables\n")
    monkeypatch.setattr(entry, "DOCUMENT", document)
    entry.write_document(results_with(0.01, 0.01))
    text = document.read_text()
    assert text.startswith(f"# Text\n\n{entry.MARK}\n\nMeasured today")
    assert "old tables" not in text
