"""Train a demo model on text that the grammar in ``demo/text.py`` generates, and write it as a Hugging Face folder.

    python tools/train_demo.py --generation 5.2 --out configs/demo/rwkv-5-village

Needs ``torch`` and ``safetensors``. ``heldout.txt`` is written beside the folder. The last quarter of the steps sees every
matrix on its 4-bit grid in half of the steps (straight-through), so that the model stays good under q4f16_1.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from demo.model import RWKV, Size
from demo.text import SYSTEM, Grammar
from demo.vocabulary import Vocabulary
from safetensors.torch import save
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

HELD_OUT_SEED, VOCABULARY_SEED = 1_000_003, 1_000_033
HELD_OUT_BYTES = 32_000
VOCABULARY_DOCUMENTS = 20_000
MAX_TOKENS = 765
CONTEXT_LENGTH = 1024
GROUP = 32
QUESTIONS = (
    "Hello!", "What is your name?", "Who lives in the red house?", "What does he like to eat?", "And Nina?",
    "Tom lost his blue key in the forest. He was sad because the key was gone. Then Mia found the key under a tree "
    "and gave it back. Why was Tom sad?", "Who found the key?", "Thank you!",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How to train: ``steps`` updates on ``batch`` segments of ``length`` tokens; the state is carried through the
    segments of a context."""

    steps: int = 1500
    batch: int = 8
    length: int = 256
    rate: float = 4e-3
    final_rate: float = 1e-4
    weight_decay: float = 0.1
    warmup: int = 60
    quantised_share: float = 0.25

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.final_rate + (self.rate - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def held_out_text() -> str:
    text = ""
    for document in Grammar(HELD_OUT_SEED, held_out=True).documents():
        if len(text) + len(document) > HELD_OUT_BYTES:
            return text
        text += document
    raise AssertionError("the grammar never ends")


def build_vocabulary() -> Vocabulary:
    documents = Grammar(VOCABULARY_SEED).documents()
    return Vocabulary.from_text("".join(next(documents) for _ in range(VOCABULARY_DOCUMENTS)), MAX_TOKENS)


def contexts(vocabulary: Vocabulary, seed: int, length: int) -> Iterator[list[int]]:
    """Token lists of ``length``: whole documents one after the other, half of them behind an end of text (id 0)."""
    documents, ends = Grammar(seed).documents(), random.Random(seed)
    while True:
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += [0] * ends.randrange(2) + vocabulary.encode(next(documents))
        yield tokens[:length]


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """``weight`` [out, in] as group quantisation stores it: 2^bits - 1 levels, an fp16 scale per 32 inputs."""
    top = 2 ** (bits - 1) - 1
    groups = weight.unflatten(-1, (-1, GROUP))
    scale = (groups.abs().amax(-1, keepdim=True).clamp(min=1e-4) / top).half().float()
    return ((groups / scale).round().clamp(-top, top) * scale).flatten(-2)


def quantised(model: RWKV, bits: int) -> dict[str, Tensor]:
    """Every matrix on its grid; the gradient passes straight through."""
    return {
        name: weight + (on_grid(weight, bits) - weight).detach()
        for name, weight in model.named_parameters()
        if is_matrix(name)
    }


def is_matrix(name: str) -> bool:
    """Embedding, head and projections: what quantisation and weight decay act on."""
    return name.endswith((".embeddings.weight", "head.weight")) or name.rsplit(".", 2)[-2] in MATRICES


MATRICES = ("key", "value", "receptance", "gate", "output")


@torch.no_grad()
def perplexity(model: RWKV, ids: list[int], bits: int | None = None) -> float:
    """Of ``ids`` as one stream behind an end of text."""
    device = model.head.weight.device
    weights = quantised(model, bits) if bits else {}
    state, loss = model.initial_state(1), 0.0
    inputs, targets = (torch.tensor(x, device=device) for x in ([0, *ids[:-1]], ids))
    for x, y in zip(inputs.split(256), targets.split(256)):
        logits, state = functional_call(model, weights, (x[None], state))
        loss += F.cross_entropy(logits[0], y, reduction="sum").item()
    return math.exp(loss / len(ids))


def baselines(train: list[int], ids: list[int], vocab_size: int) -> tuple[float, float]:
    """Perplexity of a unigram model (add one) and of a bigram model that leans on it (Witten-Bell)."""
    single, pairs = Counter(train), Counter(zip(train, train[1:]))
    followers = Counter(first for first, _ in pairs)
    uni = bi = 0.0
    for before, token in zip([0, *ids], ids):
        p = (single[token] + 1) / (len(train) + vocab_size)
        uni += math.log(p)
        kinds = followers[before]
        bi += math.log((pairs[before, token] + kinds * p) / (single[before] + kinds) if kinds else p)
    return math.exp(-uni / len(ids)), math.exp(-bi / len(ids))


def train(model: RWKV, vocabulary: Vocabulary, plan: Plan, seed: int, held_out: list[int]) -> float:
    """Train in place; returns the mean loss of the last 50 steps, in nats per token."""
    device = model.head.weight.device
    matrices = [p for name, p in model.named_parameters() if is_matrix(name)]
    vectors = [p for name, p in model.named_parameters() if not is_matrix(name)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        eps=1e-9,
        fused=True,
    )
    rows = contexts(vocabulary, seed, CONTEXT_LENGTH + 1)
    segments = CONTEXT_LENGTH // plan.length
    losses: list[float] = []
    start = time.time()
    for step in range(plan.steps):
        segment = step % segments
        if segment == 0:
            batch = torch.tensor([next(rows) for _ in range(plan.batch)], device=device)
            state = model.initial_state(plan.batch)
        x = batch[:, segment * plan.length : (segment + 1) * plan.length + 1]
        late = step >= plan.steps * (1 - plan.quantised_share)
        weights = quantised(model, 4) if late and step % 2 else {}
        logits, state = functional_call(model, weights, (x[:, :-1], state))
        loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        optimizer.step()
        state = detached(state)
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            seconds = time.time() - start
            recent = losses[-50:]
            report = f"step {step + 1}/{plan.steps}  loss {sum(recent) / len(recent):.4f}"
            report += f"  {(step + 1) * plan.batch * plan.length / seconds:.0f} tok/s"
            report += f"  ETA {seconds / (step + 1) * (plan.steps - step - 1):.0f} s"
            if (step + 1) % 400 == 0:
                report += f"  held-out perplexity {perplexity(model, held_out):.4f}"
            print(report, flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def detached(state):
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(detached(part) for part in state)


@torch.no_grad()
def chat(model: RWKV, vocabulary: Vocabulary, questions: tuple[str, ...]) -> str:
    """Greedy answers in one chat under the World system prompt."""
    device = model.head.weight.device
    state, transcript = model.initial_state(1), ""
    text = SYSTEM
    for question in questions:
        text += f"User: {question}\n\nAssistant:"
        logits, state = model(torch.tensor([vocabulary.encode(text)], device=device), state)
        answer: list[int] = []
        while len(answer) < 100:
            token = int(logits[0, -1, : len(vocabulary.tokens)].argmax())
            answer.append(token)
            logits, state = model(torch.tensor([[token]], device=device), state)
            if token == 0 or vocabulary.tokens[token] == b"\n\n":
                break
        transcript += f"> User: {question}\n>\n> Assistant:{vocabulary.decode(answer).rstrip()}\n>\n"
        text = ""
    return transcript.removesuffix(">\n")


def hf_config(size: Size) -> dict:
    config = {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv" if size.generation == "4" else "rwkv5",
        "vocab_size": size.vocab_size,
        "context_length": CONTEXT_LENGTH,
        "hidden_size": size.hidden_size,
        "attention_hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.num_hidden_layers,
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if size.generation == "5.2":
        config |= {
            "model_version": "5_2",
            "num_attention_heads": size.num_heads,
            "head_size": size.head_size,
            "head_size_divisor": 8,
        }
    return config


CARD = """# {name}

A small RWKV-{generation} model that knows one village: who lives there, what they like, and what happens in short stories.
It is trained from scratch on text that a grammar in this repository generates, and serves as a first chat without a
download and as the yardstick for kernels and quantisation schemes.

Made by `python tools/train_demo.py --generation {generation} --out configs/demo/{name} --steps {steps} --seed {seed}`.

| | |
|---|---|
| layers, hidden size, vocabulary | {layers}, {hidden}, {tokens} tokens of {vocab} |
| parameters | {parameters:,} (matrices float16, vectors float32) |
| training | {steps} steps, {seen:,} tokens, last loss {loss:.4f} nats per token |

Perplexity per token on `heldout.txt` ({held_out:,} tokens as one stream behind id 0; its stories are about combinations that
training never saw):

| unigram | bigram | this model | 8 bits | 4 bits |
|---|---|---|---|---|
| {unigram:.1f} | {bigram:.2f} | **{float:.4f}** | {q8:.4f} ({q8_rise:+.2%}) | {q4:.4f} ({q4_rise:+.2%}) |

8 and 4 bits are simulated (symmetric groups of 32 inputs, as q8f16_1 and q4f16_1).

Greedy, under the World system prompt:

{chat}"""


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
    print(f"RWKV-{size.generation}, {parameters:,} parameters, {len(vocabulary.tokens)} tokens, {len(ids)} held-out tokens")
    loss = train(model, vocabulary, plan, args.seed, ids)

    tensors = {
        name: weight.detach().cpu().to(torch.float16 if is_matrix(name) else torch.float32).contiguous()
        for name, weight in model.named_parameters()
    }
    model.load_state_dict(tensors)
    figures = {"float": perplexity(model, ids), "q8": perplexity(model, ids, 8), "q4": perplexity(model, ids, 4)}
    figures |= {f"{name}_rise": figures[name] / figures["float"] - 1 for name in ("q8", "q4")}
    rows = contexts(vocabulary, args.seed, CONTEXT_LENGTH)
    figures["unigram"], figures["bigram"] = baselines([i for _ in range(500) for i in next(rows)], ids, len(vocabulary.tokens))
    card = CARD.format(
        name=args.out.name, generation=size.generation, steps=plan.steps, seed=args.seed, layers=size.num_hidden_layers,
        hidden=size.hidden_size, tokens=len(vocabulary.tokens), vocab=size.vocab_size, parameters=parameters,
        seen=plan.steps * plan.batch * plan.length, loss=loss, held_out=len(ids),
        chat=chat(model, vocabulary, QUESTIONS), **figures,
    )  # fmt: skip

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (args.out / "config.json").write_text(json.dumps(hf_config(size), indent=2) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(card, encoding="utf-8")
    vocabulary.save(args.out / "rwkv_vocab_demo.txt")
    (args.out.parent / "heldout.txt").write_text(held_out, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
