"""Train a demo model and write it as a Hugging Face folder.

    python tools/train_demo.py --generation 5.2 --out configs/demo/rwkv-5-village
    python tools/train_demo.py --generation 7 --task reversal --out configs/demo/rwkv-7-reverser

Needs ``torch`` and ``safetensors``. ``--checkpoint FILE`` keeps what is needed to go on after an interruption.

The village is text that the grammar in ``demo/text.py`` generates; ``heldout.txt`` is written beside the folder. An
assistant's answers weigh more in the loss than other text; in the last fifth of the training every second step sees the
matrices on their 4-bit grid (straight-through), so that the model stays good under q4f16_1. Of strings to reverse the
answers alone count, and such a model never sees a grid: it is there to show what one costs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from demo.batch import batch_of
from demo.folder import write_folder
from demo.generations import GENERATIONS, Model, model_of
from demo.measure import is_matrix, quantized
from demo.tasks import TASKS, Task
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

SAVED_EVERY = 100  # steps


@dataclass(frozen=True)
class Plan:
    """How to train: ``steps`` updates on ``batch`` segments of up to ``length`` tokens; the state is carried through the
    segments of a context. ``bfloat16`` has the products of matrices take rounded inputs, the recurrence not."""

    steps: int = 2000
    batch: int = 8
    length: int = 256
    rate: float = 4e-3
    final_rate: float = 1e-4
    weight_decay: float = 0.1
    warmup: int = 60
    quantized_share: float = 0.2
    bfloat16: bool = False

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.final_rate + (self.rate - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


PLANS = {"village": Plan(), "reversal": Plan(steps=6500, batch=48, rate=2e-3, quantized_share=0.0)}


def in_answer(tokens: Tensor, began: int, ended: int) -> Tensor:
    """Whether each of ``tokens`` [B, T] comes after the token that begins an answer, up to the one that ends it."""
    position = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    last_began, last_ended = ((position * (tokens == token)).cummax(1).values for token in (began, ended))
    return F.pad(last_began > last_ended, (1, -1))


def segments(
    task: Task, rows: Iterator[list[int]], plan: Plan, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """Tokens [B, T], the tokens after them, these tokens' weights in the loss, and whether a context begins."""
    while True:
        tokens, own = batch_of(list(islice(rows, plan.batch)), device)
        answers = in_answer(tokens, task.began, task.ended)
        weights = own * torch.where(answers, task.answer_weight, task.other_weight)
        parts = (x.split(plan.length, 1) for x in (tokens[:, :-1], tokens[:, 1:], weights[:, 1:]))
        for i, (x, y, weight) in enumerate(zip(*parts)):
            yield x, y, weight, i == 0


def train(model: Model, task: Task, plan: Plan, seed: int, checkpoint: Path | None) -> float:
    """Train in place, from where ``checkpoint`` left off if it is there.

    Returns the mean loss of the last 50 steps, in nats per token that counts."""
    matrices = [p for name, p in model.named_parameters() if is_matrix(name)]
    others = [p for name, p in model.named_parameters() if not is_matrix(name)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        eps=1e-9,
        fused=True,
    )
    losses: list[float] = []
    state = None
    if checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        losses, state = saved["losses"], saved["state"]
    begun, start = len(losses), time.time()
    drawn = segments(task, task.rows(seed, plan.steps, plan.batch), plan, model.device)
    for step, (x, y, weight, begins) in islice(enumerate(drawn), begun, plan.steps):
        if begins:
            state = model.initial_state(plan.batch)
        late = step >= plan.steps * (1 - plan.quantized_share)
        on_grid = quantized(model, 4) if late and step % 2 else {}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=plan.bfloat16):
            logits, state = functional_call(model, on_grid, (x, state))
        nats = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="none").view_as(weight)
        loss = (nats * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        optimizer.step()
        state = detached(state)
        losses.append(nats[weight > 0].mean().item())
        done = step + 1
        if checkpoint and done % SAVED_EVERY == 0:
            beside = checkpoint.with_suffix(".partial")
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses, "state": state}
            torch.save(saved, beside)
            beside.replace(checkpoint)
        if done % 50 == 0 or done == plan.steps:
            pace = (time.time() - start) / (done - begun)
            report = f"step {done}/{plan.steps}  loss {mean(losses[-50:]):.4f}  {pace:.2f} s a step"
            report += f"  ETA {pace * (plan.steps - done):.0f} s"
            if done % 400 == 0:
                report += f"  {task.quality(model)}"
            print(report, flush=True)
    return mean(losses[-50:])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def detached(state):
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(detached(part) for part in state)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generation", choices=GENERATIONS, required=True)
    parser.add_argument("--task", choices=TASKS, default="village")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the model's")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--hidden-size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--checkpoint", type=Path, help="file that is written now and then, and gone on from")
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16, for processors that have it")
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    task = TASKS[args.task]()
    plan = replace(PLANS[args.task], bfloat16=args.bfloat16, **given(steps=args.steps, batch=args.batch))
    size = replace(task.size, **given(num_hidden_layers=args.layers, hidden_size=args.hidden_size))
    size = replace(size, generation=args.generation)
    model = model_of(size).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"RWKV-{size.generation}, {parameters:,} parameters, {len(task.vocabulary.tokens)} tokens of vocabulary")
    loss = train(model, task, plan, args.seed, args.checkpoint)
    print(write_folder(args.out, model, task, {**asdict(plan), "seed": args.seed, "loss": loss}))


def given(**wishes: int | None) -> dict[str, int]:
    return {name: wish for name, wish in wishes.items() if wish is not None}


if __name__ == "__main__":
    main()
