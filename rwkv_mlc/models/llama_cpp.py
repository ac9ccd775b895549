"""How llama.cpp's files hold BlinkDL's tensors (``conversion/rwkv.py`` there)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LlamaCpp:
    """An ``architecture`` of llama.cpp's. ``names`` turn its names into BlinkDL's: a pattern for the name's beginning and its
    replacement, applied one after the other; a name that becomes empty is of a tensor that nothing reads. By the last part of
    BlinkDL's name, ``transposed`` are those whose last two axes are the other way round, ``by_head`` those [heads, size] that
    lie in one axis, and ``fused`` gives for one of several vectors, along its first axis, what they are."""

    architecture: str
    names: tuple[tuple[str, str], ...]
    transposed: tuple[str, ...] = ()
    by_head: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


LLAMA_CPP_NAMES = (
    (r"token_embd\.", "emb."),
    (r"token_embd_norm\.", "blocks.0.ln0."),
    (r"output_norm\.", "ln_out."),
    (r"output\.", "head."),
    (r"blk\.", "blocks."),
    (r"(blocks\.\d+)\.attn_norm\.", r"\1.ln1."),
    (r"(blocks\.\d+)\.attn_norm_2\.", r"\1.ln2."),
    (r"(blocks\.\d+)\.time_mix_ln\.", r"\1.att.ln_x."),
    (r"(blocks\.\d+)\.time_mix_(key|value|receptance|gate|output)\.", r"\1.att.\2."),
    (r"(blocks\.\d+)\.channel_mix_(key|value|receptance)\.", r"\1.ffn.\2."),
)
"""What all architectures share."""

OTHER_MODELS = {
    "rwkv6qwen2": "the time mixing of RWKV-6 in the body of a Qwen2",
    "arwkv7": "the time mixing of RWKV-7 in the body of a Qwen2",
}
"""Architectures of such names whose channel mixing and norms are another model's."""
