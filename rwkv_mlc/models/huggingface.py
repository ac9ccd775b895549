"""How Hugging Face's libraries hold BlinkDL's tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Naming(NamedTuple):
    """What another implementation calls ``theirs`` and BlinkDL ``ours``, after a beginning of the name that matches ``where``
    and has BlinkDL's words already: whole parts of a name, such as ``attention`` in ``blocks.0.attention.key.weight``."""

    where: str
    theirs: str
    ours: str


BLOCK = r"blocks\.\d+\."

Rules = tuple[tuple[str, str], ...]
"""Patterns for the beginning of a name and their replacements, applied one after the other."""


def reading(names: Iterable[Naming]) -> Rules:
    """What turns their names into BlinkDL's."""
    return tuple((rf"({where}){re.escape(theirs)}(?=\.|$)", rf"\g<1>{ours}") for where, theirs, ours in names)


def writing(names: Iterable[Naming]) -> Rules:
    """What turns BlinkDL's names into theirs: the same steps backwards."""
    return tuple(
        (rf"({where}){re.escape(ours)}(?=\.|$)", rf"\g<1>{theirs}") for where, theirs, ours in reversed(tuple(names))
    )


# transformers' modeling_rwkv.py, the remote code of RWKV-5 (modeling_rwkv5.py) and mlc_llm's rwkv5_model.py
TRANSFORMERS_NAMES = (
    Naming("", "embeddings", "emb"),
    Naming(BLOCK, "pre_ln", "ln0"),
    Naming(BLOCK, "attention", "att"),
    Naming(BLOCK, "feed_forward", "ffn"),
    *(
        Naming(rf"{BLOCK}\w+\.", f"time_mix_{word}", f"time_mix_{word[0]}")
        for word in ("key", "value", "receptance", "gate")
    ),
)

# flash-linear-attention's modeling_rwkv7.py, and the folders of RWKV-7 on the hub
FLA_NAMES = (
    Naming("", "embeddings", "emb"),
    Naming("", "norm", "ln_out"),
    Naming("", "lm_head", "head"),
    Naming("", "layers", "blocks"),
    Naming(BLOCK, "pre_norm", "ln0"),
    Naming(BLOCK, "attn_norm", "ln1"),
    Naming(BLOCK, "ffn_norm", "ln2"),
    Naming(BLOCK, "attn", "att"),
    Naming(rf"{BLOCK}att\.", "g_norm", "ln_x"),
    *(Naming(rf"{BLOCK}att\.", f"{word[0]}_proj", word) for word in ("receptance", "key", "value", "output")),
    *(
        Naming(rf"{BLOCK}att\.", f"{letter}_lora.lora.{theirs}", f"{letter}{ours}")
        for letter in "wavg"
        for theirs, ours in (("0.weight", "1.weight"), ("2.weight", "2.weight"), ("2.bias", "0"))
    ),
)

PREFIX_RULES: Rules = ((r"(?:rwkv|model)\.", ""),)
"""What the names of a model within a model with a head begin with."""


@dataclass(frozen=True)
class HuggingFace:
    """The layout of a folder that transformers loads. ``names`` are told after ``prefix``, with which every name but the
    head's begins. By the end of BlinkDL's name, ``transposed`` are matrices that lie the other way round, as torch's Linear,
    and ``flat`` vectors without axes of length 1.

    ``architecture`` is the class of the model with its head, ``model_type`` what the configuration calls it. ``code`` are
    files of ``configs/huggingface`` that the folder brings, where transformers has no class of its own: the first with the
    class of the configuration, ``configuration``, the second with those of the model, of which ``base`` has no head."""

    architecture: str
    model_type: str
    names: tuple[Naming, ...]
    prefix: str
    code: tuple[str, ...] = ()
    configuration: str = ""
    base: str = ""
    transposed: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()

    def name_of(self, name: str) -> str:
        """Their name of a tensor, from BlinkDL's."""
        prefix = "" if name.startswith("head.") else self.prefix
        if name.endswith(self.transposed):
            name += ".weight"
        for pattern, replacement in writing(self.names):
            name = re.sub(f"^{pattern}", replacement, name)
        return prefix + name
