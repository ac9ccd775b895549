"""Train a demo model on text that the grammar in ``demo/text.py`` generates, and write it as a Hugging Face folder.

    python tools/train_demo.py --generation 5.2 --out configs/demo/rwkv-5-village

Needs ``torch`` and ``safetensors``. ``heldout.txt`` is written beside the folder. An assistant's answers
weigh more in the loss than other text; in the last fifth of the training every second step sees the matrices on their
4-bit grid (straight-through), so that the model stays good under q4f16_1.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from demo.corpus import build_vocabulary, contexts, held_out_text
from demo.folder import CONTEXT_LENGTH, write_folder
from demo.measure import baselines, is_matrix, perplexity, quantized
from demo.model import RWKV, Size
from demo.vocabulary import Vocabulary
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F


@dataclass(frozen=True)
class Plan:
    """How to train: ``steps`` updates on ``batch`` segments of ``length`` tokens; the state is carried through the
    segments of a context."""

    steps: int = 2000
    batch: int = 8
    length: int = 256
    rate: float = 4e-3
    final_rate: float = 1e-4
    weight_decay: float = 0.1
    warmup: int = 60
    quantized_share: float = 0.2
    answer_weight: float = 3.0

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.final_rate + (self.rate - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def in_answer(tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Whether each of ``tokens`` [B, T] belongs to an assistant's turn, its blank line included."""
    assistant, blank_line = (vocabulary.encode(text)[0] for text in ("Assistant", "\n\n"))
    position = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    began, ended = ((position * (tokens == token)).cummax(1).values for token in (assistant, blank_line))
    return F.pad(began > ended, (1, -1))


def train(model: RWKV, vocabulary: Vocabulary, rows: Iterator[list[int]], plan: Plan, held_out: list[int]) -> float:
    """Train in place on ``rows`` of one token more than a context.

    Returns the mean loss of the last 50 steps, in nats per token."""
    device = model.head.weight.device
    matrices = [p for name, p in model.named_parameters() if is_matrix(name)]
    vectors = [p for name, p in model.named_parameters() if not is_matrix(name)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        eps=1e-9,
        fused=True,
    )
    segments = CONTEXT_LENGTH // plan.length
    losses: list[float] = []
    start = time.time()
    for step in range(plan.steps):
        segment = step % segments
        if segment == 0:
            batch = torch.tensor([next(rows) for _ in range(plan.batch)], device=device)
            importance = 1 + (plan.answer_weight - 1) * in_answer(batch, vocabulary)
            state = model.initial_state(plan.batch)
        first, last = segment * plan.length, (segment + 1) * plan.length
        x, y, weight = batch[:, first:last], batch[:, first + 1 : last + 1], importance[:, first + 1 : last + 1]
        late = step >= plan.steps * (1 - plan.quantized_share)
        on_grid = quantized(model, 4) if late and step % 2 else {}
        logits, state = functional_call(model, on_grid, (x, state))
        nats = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(weight)
        loss = (nats * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        optimizer.step()
        state = detached(state)
        losses.append(nats.mean().item())
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            seconds = time.time() - start
            recent = losses[-50:]
            done = (step + 1) * plan.batch * plan.length
            report = f"step {step + 1}/{plan.steps}  loss {sum(recent) / len(recent):.4f}"
            report += f"  {done / seconds:.0f} tok/s"
            report += f"  ETA {seconds / (step + 1) * (plan.steps - step - 1):.0f} s"
            if (step + 1) % 400 == 0:
                report += f"  held-out perplexity {perplexity(model, held_out):.4f}"
            print(report, flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def detached(state):
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(detached(part) for part in state)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generation", choices=("4", "5.2"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the model's")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int, default=Size.num_hidden_layers)
    parser.add_argument("--hidden-size", type=int, default=Size.hidden_size)
    parser.add_argument("--batch", type=int, default=Plan.batch)
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    vocabulary = build_vocabulary()
    held_out = held_out_text()
    ids = vocabulary.encode(held_out)
    size = Size(args.generation, num_hidden_layers=args.layers, hidden_size=args.hidden_size)
    plan = Plan(steps=args.steps, batch=args.batch)
    model = RWKV(size).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"RWKV-{size.generation}, {parameters:,} parameters, {len(vocabulary.tokens)} tokens of vocabulary")
    loss = train(model, vocabulary, contexts(vocabulary, args.seed, CONTEXT_LENGTH + 1), plan, ids)

    seen = contexts(vocabulary, args.seed, CONTEXT_LENGTH)
    unigram, bigram = baselines([i for _ in range(500) for i in next(seen)], ids, len(vocabulary.tokens))
    figures = {
        "steps": plan.steps,
        "seed": args.seed,
        "seen": plan.steps * plan.batch * plan.length,
        "loss": loss,
        "unigram": unigram,
        "bigram": bigram,
    }
    print(write_folder(args.out, model, vocabulary, ids, figures))
    (args.out.parent / "heldout.txt").write_text(held_out, encoding="utf-8")


if __name__ == "__main__":
    main()
