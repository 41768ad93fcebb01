"""How CPU threads are shared among runners. Pure.

Two CPU runners whose threads together exceed the cores spend their time in spin barriers, a
hundred times slower than alone, so the sum over runners that compute on the CPU stays within
the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadClaim:
    """One live runner's wish."""

    runner_id: str
    cap: int = 0
    """``num_thread``; 0 for none."""
    on_gpu: bool = False
    """Every layer is on a GPU: one thread drives it, outside the budget."""


def share_threads(budget: int, claims: Sequence[ThreadClaim]) -> Mapping[str, int]:
    """Threads of each runner: equal shares, what a capped runner leaves goes to the others,
    earlier runners get the remainder.

    Each runner has at least one thread, so the sum exceeds ``budget`` only when there are more
    CPU runners than threads, and then every one of them has exactly one.
    """
    shares = {claim.runner_id: 1 for claim in claims}
    open_claims = [claim for claim in claims if not claim.on_gpu]
    left = max(1, budget) - len(open_claims)
    while left > 0:
        growing = [c for c in open_claims if c.cap <= 0 or shares[c.runner_id] < c.cap]
        if not growing:
            break
        for claim in growing[:left]:
            shares[claim.runner_id] += 1
        left -= min(left, len(growing))
    return shares
