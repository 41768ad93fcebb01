"""Train the built-in model and write it as GGUF.

    python -m tests.models.training.train first
    python -m tests.models.training.train agent/builtin --start-from first/llamesh-tiny.gguf \
        --steps 450 --peak-rate 0.0015 --seed 1

A decoder of about a million parameters learns the corpus by heart in a few minutes on one CPU
core. Every answer must be the greedy one at each of its tokens, with the smallest distance
between the best and the second logit reported, so that a different order of float additions
(another batch shape, another CPU) cannot change a known answer.
"""

# pyright: basic, reportMissingImports=false
# torch is a requirement of training alone and is not installed where the checks run.

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from gguf import GGUFReader
from torch import Tensor, nn
from torch.nn import functional

from tests.models.llama import NORM_EPSILON, LlamaShape, write_llama
from tests.models.tokenizer import END_OF_TEXT, BytePairTokenizer
from tests.models.training import corpus

NAME: Final = "llamesh-tiny"
VOCABULARY: Final = 1024
SHAPE: Final = LlamaShape(
    embedding=128, layers=4, heads=4, kv_heads=2, feed_forward=384, context=2048
)
WINDOW: Final = 320
ROWS: Final = 12
LONG_WINDOW: Final = 1280
LONG_ROWS: Final = 3
LONG_SHARE: Final = 0.1
"""Share of steps on long windows, so that answers survive a thousand tokens of context."""
PEAK_RATE: Final = 4e-3
WARMUP_STEPS: Final = 40
KNOWN_GAP: Final = 3.0
"""Lead in logits that every token of an answer must have to be recorded as known."""
READ_WEIGHT: Final = 0.4
"""Loss weight of tokens that the model only reads."""


class Block(nn.Module):
    """One layer, with llama.cpp's interleaved rotary pairs."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        width, inner = shape.embedding, shape.feed_forward
        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(width))
        self.ffn_norm = nn.Parameter(torch.ones(width))
        self.attn_q = nn.Linear(width, shape.heads * shape.head, bias=False)
        self.attn_k = nn.Linear(width, shape.kv_heads * shape.head, bias=False)
        self.attn_v = nn.Linear(width, shape.kv_heads * shape.head, bias=False)
        self.attn_output = nn.Linear(shape.heads * shape.head, width, bias=False)
        self.ffn_gate = nn.Linear(width, inner, bias=False)
        self.ffn_up = nn.Linear(width, inner, bias=False)
        self.ffn_down = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        rows, length, width = hidden.shape

        def split(values: Tensor, heads: int) -> Tensor:
            return values.view(rows, length, heads, self.shape.head).transpose(1, 2)

        def rotate(values: Tensor) -> Tensor:
            even, odd = values[..., 0::2], values[..., 1::2]
            turned = (even * cosine - odd * sine, even * sine + odd * cosine)
            return torch.stack(turned, -1).flatten(-2)

        normed = functional.rms_norm(hidden, (width,), self.attn_norm, NORM_EPSILON)
        attended = functional.scaled_dot_product_attention(
            rotate(split(self.attn_q(normed), self.shape.heads)),
            rotate(split(self.attn_k(normed), self.shape.kv_heads)),
            split(self.attn_v(normed), self.shape.kv_heads),
            is_causal=True,
            enable_gqa=True,
        )
        hidden = hidden + self.attn_output(attended.transpose(1, 2).reshape(rows, length, -1))
        normed = functional.rms_norm(hidden, (width,), self.ffn_norm, NORM_EPSILON)
        gated = functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed)
        return hidden + self.ffn_down(gated)


class Decoder(nn.Module):
    """The whole model; the embedding is the output head."""

    def __init__(self, shape: LlamaShape, vocabulary: int) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(vocabulary, shape.embedding)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.embedding))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.04)

    def forward(self, tokens: Tensor) -> Tensor:
        half = torch.arange(0, self.shape.head, 2).float() / self.shape.head
        angles = torch.arange(tokens.shape[1]).float()[:, None] * self.shape.rope_base**-half
        cosine, sine = angles.cos(), angles.sin()
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden, cosine, sine)
        width = self.shape.embedding
        normed = functional.rms_norm(hidden, (width,), self.norm, NORM_EPSILON)
        return normed @ self.embedding.weight.T

    def weights(self) -> dict[str, Tensor]:
        """Tensors under their GGUF names."""
        named = {"token_embd.weight": self.embedding.weight, "output_norm.weight": self.norm}
        for index, block in enumerate(self.blocks):
            for name, parameter in block.named_parameters():
                tensor = name.removesuffix(".weight")
                named[f"blk.{index}.{tensor}.weight"] = parameter
        return named

    @torch.no_grad()
    def read(self, path: Path) -> None:
        """Take all weights from an earlier file."""
        stored = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
        for name, parameter in self.weights().items():
            parameter.copy_(torch.tensor(stored[name]))


@dataclass(frozen=True, slots=True)
class Batch:
    tokens: Tensor
    weights: Tensor


class Sampler:
    """Fills windows with documents; each window starts with a whole one."""

    def __init__(self, tokenizer: BytePairTokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._end = tokenizer.id_of(END_OF_TEXT)
        self._encoded: dict[str, list[int]] = {}

    def draw(self) -> Batch:
        long = self._rng.random() < LONG_SHARE
        rows, length = (LONG_ROWS, LONG_WINDOW) if long else (ROWS, WINDOW)
        tokens: list[list[int]] = []
        weights: list[list[float]] = []
        for _ in range(rows):
            window, emphasis = self._window(length + 1)
            tokens.append(window)
            weights.append(emphasis)
        return Batch(torch.tensor(tokens), torch.tensor(weights))

    def _window(self, length: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < length:
            for span in corpus.draw_document(self._rng):
                ids = self._encode(span.text)
                tokens += ids
                weights += [1.0 if span.spoken else READ_WEIGHT] * len(ids)
            tokens.append(self._end)
            weights.append(READ_WEIGHT)
        return tokens[:length], weights[:length]

    def _encode(self, text: str) -> list[int]:
        ids = self._encoded.get(text)
        if ids is None:
            ids = self._encoded[text] = self._tokenizer.encode(text)
        return ids


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@dataclass(frozen=True, slots=True)
class Margin:
    """How safely one answer is known: its smallest lead over the second-best token."""

    name: str
    gap: float


@torch.no_grad()
def margins(model: Decoder, tokenizer: BytePairTokenizer) -> list[Margin]:
    """Margins of all known answers, worst first; a negative one is a wrong token."""
    found: list[Margin] = []
    cases = {name: (dialog.prompt, dialog) for name, dialog in corpus.known_dialogs().items()}
    for name, (prompt, dialog) in cases.items():
        before = tokenizer.encode(prompt)
        after = tokenizer.encode(f"{dialog.answer}<|im_end|>")
        logits = model(torch.tensor([before + after]))[0, len(before) - 1 : -1]
        target = torch.tensor(after)[:, None]
        right = logits.gather(1, target)
        rival = logits.scatter(1, target, -math.inf).amax(1, keepdim=True)
        found.append(Margin(name, float((right - rival).min())))
    return sorted(found, key=lambda margin: margin.gap)


def train(
    tokenizer: BytePairTokenizer, steps: int, seed: int, peak: float, start_from: Path | None
) -> Decoder:
    """Run ``steps`` of AdamW on one thread, from random weights or those of an earlier file."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = Decoder(SHAPE, len(tokenizer))
    if start_from is not None:
        model.read(start_from)
    sampler = Sampler(tokenizer, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, peak)
        batch = sampler.draw()
        logits = model(batch.tokens[:, :-1]).flatten(0, 1)
        losses = functional.cross_entropy(logits, batch.tokens[:, 1:].flatten(), reduction="none")
        emphasis = batch.weights[:, 1:].flatten()
        loss = (losses * emphasis).sum() / emphasis.sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 25 == 0:
            spoken = emphasis == 1.0
            print(
                f"step {step} loss {loss.item():.4f} spoken {losses[spoken].mean().item():.4f} "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % 100 == 99:
            worst = margins(model, tokenizer)
            wrong = sum(margin.gap <= 0 for margin in worst)
            print(f"wrong {wrong} of {len(worst)}, worst {worst[:4]}", flush=True)
    return model


def export(model: Decoder, tokenizer: BytePairTokenizer, folder: Path) -> None:
    """Write the GGUF and, beside it, its digest and known answers."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.weights().items()}
    path = folder / f"{NAME}.gguf"
    write_llama(path, tokenizer, SHAPE, name=NAME, storage="f16", weights=weights)
    worst = margins(model, tokenizer)
    gaps = [margin.gap for margin in worst]
    known = corpus.known_dialogs()
    record = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": SHAPE.parameters(len(tokenizer)),
        "smallest_gap": round(min(gap for gap in gaps if gap > KNOWN_GAP), 3),
        "answers": [
            {
                "name": margin.name,
                "gap": round(margin.gap, 3),
                "messages": list(known[margin.name].turns),
                "tools": list(known[margin.name].tools),
                "prompt": known[margin.name].prompt,
                "answer": known[margin.name].answer,
            }
            for margin in sorted(worst, key=lambda margin: margin.name)
            if margin.gap > KNOWN_GAP
        ],
    }
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes, {record['sha256']}")
    print(f"worst margins: {worst[:8]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-rate", type=float, default=PEAK_RATE)
    parser.add_argument("--start-from", type=Path, default=None)
    arguments = parser.parse_args()
    tokenizer = BytePairTokenizer.train(corpus.vocabulary_text(), VOCABULARY)
    print(f"{len(tokenizer.merges)} merges, {SHAPE.parameters(len(tokenizer))} parameters")
    model = train(
        tokenizer, arguments.steps, arguments.seed, arguments.peak_rate, arguments.start_from
    )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    export(model, tokenizer, arguments.folder)


if __name__ == "__main__":
    main()
