"""What is said of a demo model beside its weights, and what it says itself."""

from __future__ import annotations

import torch

from .generations import Model
from .reversal import MEASURED, MOST_DIGITS
from .vocabulary import Vocabulary
from .world import SYSTEM

QUESTIONS = (
    "Hello!", "What is your name?", "Who lives in the red house?", "What does he like to eat?", "And Nina?",
    "Tom lost his blue key in the forest. He was sad because the key was gone. Then Mia found the key under a tree "
    "and gave it back. Why was Tom sad?", "Who found the key?", "Thank you!",
)  # fmt: skip

VILLAGE = """# {name}

A small RWKV-{generation} model that knows one village: who lives there, what they like, and what happens in short
stories. It is trained from scratch on text that a grammar in this repository generates, and serves as a first chat
without a download and as the yardstick for kernels and quantization schemes.

Made by `python tools/train_demo.py --generation {generation} --out configs/demo/{name} --steps {steps} --seed {seed}{options}`.

| | |
|---|---|
| layers, hidden size, vocabulary | {layers}, {hidden}, {tokens} tokens of {vocab} |
| parameters | {parameters:,} (matrices float16, vectors float32) |
| training | {steps} steps, {seen:,} tokens, last loss {loss:.4f} nats per token |

Perplexity per token on `heldout.txt` ({tokens_held_out:,} tokens as one stream after id 0; its stories are about combinations
that training never saw):

| unigram | bigram | this model | 8 bits | 4 bits |
|---|---|---|---|---|
| {unigram:.1f} | {bigram:.2f} | **{found:.4f}** | {q8:.4f} ({q8_rise:+.2%}) | {q4:.4f} ({q4_rise:+.2%}) |

8 and 4 bits are simulated (symmetric groups of 32 inputs, as q8f16_1 and q4f16_1).

It chats in World's form (`--template rwkv_world`). Greedy, under the World system prompt:

{chat}"""

REVERSAL = """# {name}

A tiny RWKV-{generation} model that reverses strings of up to {most} digits, such as `8142=` to `2418`, and knows nothing
else. It is a ruler for kernels and quantization schemes: a string has to stay in the state until all of it is read, and an
answer is right only as a whole.

Made by `python tools/train_demo.py --generation {generation} --task reversal --out configs/demo/{name}`, with
`--steps {steps} --seed {seed}{options}`.

| | |
|---|---|
| layers, hidden size, vocabulary | {layers}, {hidden}, single bytes |
| parameters | {parameters:,} (matrices float16, vectors float32) |
| training | {steps} steps of {batch} strings, last loss {loss:.6f} nats per token of the answers |

Exact answers to {measured} strings of 1 to {most} digits, which are drawn from a seed of their own:

| this model | 8 bits | 4 bits |
|---|---|---|
| **{found:.1%}** | {q8:.1%} | {q4:.1%} |

8 and 4 bits are simulated (symmetric groups of 32 inputs, as q8f16_1 and q4f16_1). Training never saw those grids.
"""


def village(
    name: str,
    model: Model,
    vocabulary: Vocabulary,
    tokens_held_out: int,
    perplexities: tuple[float, float, float, float, float],
    figures: dict[str, float],
) -> str:
    """``perplexities`` are those of unigrams, of bigrams and of the model as stored, on 8 and on 4 bits."""
    unigram, bigram, found, q8, q4 = perplexities
    return VILLAGE.format(
        **described(name, model, figures),
        tokens=len(vocabulary.tokens),
        tokens_held_out=tokens_held_out,
        seen=int(figures["steps"] * figures["batch"] * figures["length"]),
        unigram=unigram,
        bigram=bigram,
        found=found,
        q8=q8,
        q8_rise=q8 / found - 1,
        q4=q4,
        q4_rise=q4 / found - 1,
        chat=chat(model, vocabulary, QUESTIONS),
        **figures,
    )


def reversal(name: str, model: Model, shares: list[float], figures: dict[str, float]) -> str:
    """``shares`` are those of exact answers of the model as stored, on 8 and on 4 bits."""
    found, q8, q4 = shares
    model_and_task = described(name, model, figures) | {"most": MOST_DIGITS, "measured": MEASURED}
    return REVERSAL.format(**model_and_task, found=found, q8=q8, q4=q4, **figures)


def described(name: str, model: Model, figures: dict[str, float]) -> dict[str, str | int]:
    return {
        "options": " --bfloat16" if figures["bfloat16"] else "",
        "name": name,
        "generation": model.size.generation,
        "layers": model.size.num_hidden_layers,
        "hidden": model.size.hidden_size,
        "vocab": model.size.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def chat(model: Model, vocabulary: Vocabulary, questions: tuple[str, ...]) -> str:
    """Greedy answers in one chat under the World system prompt."""
    device = model.device
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
