"""How llama.cpp's architectures hold BlinkDL's tensors (``conversion/rwkv.py`` there)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    """``names`` turn llama.cpp's names into BlinkDL's: a pattern for the name's beginning and its replacement, applied one
    after the other; a name that becomes empty is of a tensor that nothing reads. By the last part of BlinkDL's name,
    ``transposed`` are those whose last two axes are the other way round, ``by_head`` those [heads, size] that lie in one axis,
    and ``fused`` gives for one of several vectors, along its first axis, what they are."""

    names: tuple[tuple[str, str], ...]
    transposed: tuple[str, ...] = ()
    by_head: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


SHARED = (
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

ARCHITECTURES = {
    "rwkv6": Layout(
        names=(
            *SHARED,
            (r"(blocks\.\d+)\.time_mix_lerp_fused\.weight$", r"\1.att.time_maa_wkvrg"),
            (r"(blocks\.\d+)\.time_mix_lerp_([xwkvrg])\.weight$", r"\1.att.time_maa_\2"),
            (r"(blocks\.\d+)\.time_mix_(w[12])\.weight$", r"\1.att.time_maa_\2"),
            (r"(blocks\.\d+)\.time_mix_(decay|decay_w[12])\.weight$", r"\1.att.time_\2"),
            (r"(blocks\.\d+)\.time_mix_first\.weight$", r"\1.att.time_faaaa"),
            (r"(blocks\.\d+)\.channel_mix_lerp_([kr])\.weight$", r"\1.ffn.time_maa_\2"),
        ),
        transposed=("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"),
        by_head=("time_faaaa",),
        fused={"time_maa_wkvrg": tuple(f"time_maa_{letter}" for letter in "wkvrg")},
    ),
    "rwkv7": Layout(
        names=(
            *SHARED,
            (
                r"blocks\.0\.time_mix_v[012]\.weight$",
                "",
            ),  # copies of a0 to a2 stand in for what the first layer has not
            (r"(blocks\.\d+)\.time_mix_lerp_fused\.weight$", r"\1.att.x_rwkvag"),
            (r"(blocks\.\d+)\.time_mix_([wavg][012]|k_k|k_a|r_k)\.weight$", r"\1.att.\2"),
            (r"(blocks\.\d+)\.channel_mix_lerp_k\.weight$", r"\1.ffn.x_k"),
        ),
        transposed=tuple(f"{letter}{half}" for letter in "wavg" for half in "12"),
        by_head=("r_k",),
        fused={"x_rwkvag": tuple(f"x_{letter}" for letter in "rwkvag")},
    ),
}
"""By ``general.architecture``."""

OTHER_MODELS = {
    "rwkv6qwen2": "the time mixing of RWKV-6 in the body of a Qwen2",
    "arwkv7": "the time mixing of RWKV-7 in the body of a Qwen2",
}
"""Architectures of that name whose channel mixing and norms are another model's."""
