"""A trained demo model as a Hugging Face folder with its vocabulary and a card that shows what it can do."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from .measure import is_matrix, perplexity
from .model import RWKV, Size
from .vocabulary import Vocabulary
from .world import SYSTEM

CONTEXT_LENGTH = 1024
QUESTIONS = (
    "Hello!", "What is your name?", "Who lives in the red house?", "What does he like to eat?", "And Nina?",
    "Tom lost his blue key in the forest. He was sad because the key was gone. Then Mia found the key under a tree "
    "and gave it back. Why was Tom sad?", "Who found the key?", "Thank you!",
)  # fmt: skip

CARD = """# {name}

A small RWKV-{generation} model that knows one village: who lives there, what they like, and what happens in short
stories. It is trained from scratch on text that a grammar in this repository generates, and serves as a first chat
without a download and as the yardstick for kernels and quantization schemes.

Made by `python tools/train_demo.py --generation {generation} --out configs/demo/{name} --steps {steps} --seed {seed}`.

| | |
|---|---|
| layers, hidden size, vocabulary | {layers}, {hidden}, {tokens} tokens of {vocab} |
| parameters | {parameters:,} (matrices float16, vectors float32) |
| training | {steps} steps, {seen:,} tokens, last loss {loss:.4f} nats per token |

Perplexity per token on `heldout.txt` ({held_out:,} tokens as one stream after id 0; its stories are about combinations
that training never saw):

| unigram | bigram | this model | 8 bits | 4 bits |
|---|---|---|---|---|
| {unigram:.1f} | {bigram:.2f} | **{float:.4f}** | {q8:.4f} ({q8_rise:+.2%}) | {q4:.4f} ({q4_rise:+.2%}) |

8 and 4 bits are simulated (symmetric groups of 32 inputs, as q8f16_1 and q4f16_1).

Greedy, under the World system prompt:

{chat}"""


def write_folder(out: Path, model: RWKV, vocabulary: Vocabulary, held_out: list[int], figures: dict[str, float]) -> str:
    """Round the matrices to float16, in place, and write the model.

    Returns its card, which also tells the ``figures`` of the training."""
    tensors = {
        name: weight.detach().cpu().to(torch.float16 if is_matrix(name) else torch.float32).contiguous()
        for name, weight in model.named_parameters()
    }
    model.load_state_dict(tensors)
    as_stored, q8, q4 = (perplexity(model, held_out, bits) for bits in (None, 8, 4))
    size = model.size
    card = CARD.format(
        name=out.name,
        generation=size.generation,
        layers=size.num_hidden_layers,
        hidden=size.hidden_size,
        tokens=len(vocabulary.tokens),
        vocab=size.vocab_size,
        parameters=sum(p.numel() for p in model.parameters()),
        held_out=len(held_out),
        float=as_stored,
        q8=q8,
        q8_rise=q8 / as_stored - 1,
        q4=q4,
        q4_rise=q4 / as_stored - 1,
        chat=chat(model, vocabulary, QUESTIONS),
        **figures,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (out / "config.json").write_text(json.dumps(hf_config(size), indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card, encoding="utf-8")
    vocabulary.save(out / "rwkv_vocab_demo.txt")
    return card


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
