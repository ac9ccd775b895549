"""A trained demo model as a Hugging Face folder with its vocabulary and a card that shows what it can do."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from .generations import Model
from .measure import is_low_rank, is_matrix
from .model import Size
from .rwkv7 import RANKS
from .tasks import Task


def write_folder(out: Path, model: Model, task: Task, figures: dict[str, float]) -> str:
    """Round the matrices to float16, in place, and write the model.

    Returns its card, which also tells the ``figures`` of the training."""
    tensors = {
        name: weight.detach().cpu().to(torch.float16 if is_matrix(name) or is_low_rank(name) else torch.float32)
        for name, weight in model.named_parameters()
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    model.load_state_dict(tensors)
    card = task.card(out.name, model, figures)
    out.mkdir(parents=True, exist_ok=True)
    config = hf_config(model.size, task.context_length)
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card, encoding="utf-8")
    task.vocabulary.save(out / "rwkv_vocab_demo.txt")
    task.write_beside(out.parent)
    return card


def hf_config(size: Size, context_length: int) -> dict:
    """In the words of transformers for RWKV-4, of its remote code for RWKV-5 and of flash-linear-attention for RWKV-7."""
    config = {
        "vocab_size": size.vocab_size,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.num_hidden_layers,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if size.generation == "7":
        ranks = {"w": "decay", "a": "a", "v": "v", "g": "gate"}
        return config | {
            "architectures": ["RWKV7ForCausalLM"],
            "model_type": "rwkv7",
            "max_position_embeddings": context_length,
            "head_dim": size.head_size,
            "norm_eps": 1e-5,
            "hidden_act": "sqrelu",
            **{f"{name}_low_rank_dim": RANKS[letter] for letter, name in ranks.items()},
        }
    config |= {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv" if size.generation == "4" else "rwkv5",
        "context_length": context_length,
        "attention_hidden_size": size.hidden_size,
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 0,
    }
    if size.generation == "5.2":
        config |= {
            "model_version": "5_2",
            "num_attention_heads": size.num_heads,
            "head_size": size.head_size,
            "head_size_divisor": 8,
        }
    return config
