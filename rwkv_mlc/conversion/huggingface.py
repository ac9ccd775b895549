"""A folder that transformers loads: weights, configuration, code, tokenizer and a card that says what it was made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import __version__
from ..artifact.disk import write_json
from ..building.source import Source
from ..config import RWKVConfig
from ..errors import UserError
from ..models.huggingface import HuggingFace
from ..special_tokens import SpecialTokens
from ..tokenizer import END_OF_TEXT, load_tokenizer
from ..weights.checkpoint import LazyTensor
from ..weights.folder import CONFIG, GENERATION_CONFIG
from .output import new_folder
from .safetensors_shards import size_in_bytes, write_shards
from .tensors import DTYPES, BlinkDLTensors, OutputTensor, Progress, silent
from .tokenizer_files import CODE, write_tokenizer

TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
CARD = "README.md"


def convert_hf(
    source: Source,
    out: Path,
    dtype: str | None = None,
    max_shard_size: str = "2GB",
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the folder ``out``. ``dtype`` is a key of ``TYPES``, None keeps the types of the checkpoint; no shard is larger
    than ``max_shard_size`` unless one tensor is.

    Raises UserError for a generation of which there is no layout, a model that the layout cannot express, a value that is not
    finite or that the type does not hold, and an output that is there, unless ``overwrite`` and it is a model's folder."""
    if dtype is not None and dtype not in TYPES:
        raise UserError(f"--dtype takes {', '.join(TYPES)}, not {dtype}.")
    largest = size_in_bytes(max_shard_size)
    model = BlinkDLTensors.of(source.checkpoint, source.options)
    layout = model.generation.hugging_face
    if layout is None:
        raise UserError(
            f"There is no layout of Hugging Face's for RWKV-{model.config.generation}, which {source.checkpoint.source} is."
        )
    if source.tuned_state is not None:
        raise UserError("A folder of Hugging Face's has no place for a tuned state; leave --state out.")
    own = model.generation.hugging_face_config(model.config, model.tensors)
    dtypes = model.stored_as(TYPES[dtype] if dtype else None)
    tensors = [_output(layout, name, tensor, dtypes[name]) for name, tensor in model.tensors.items()]
    tokenizer = load_tokenizer(source.vocabulary)
    with new_folder(out, overwrite) as folder:
        main_type = _main_type(tensors)
        write_json(folder / CONFIG, _config(layout, model.config, own, _token_ids(source.tokens), main_type))
        write_json(folder / GENERATION_CONFIG, _token_ids(source.tokens))
        write_tokenizer(folder, tokenizer, source.template, model.config.context_length)
        for file in layout.code:
            shutil.copyfile(CODE / file, folder / file)
        (folder / CARD).write_text(_card(source, model, main_type), encoding="utf-8")
        write_shards(folder, tensors, largest, progress)


def _output(layout: HuggingFace, name: str, tensor: LazyTensor, dtype: str) -> OutputTensor:
    shape, read = tensor.shape, tensor.read
    if name.endswith(layout.transposed):
        shape = shape[::-1]
        return OutputTensor(
            layout.name_of(name), shape, dtype, LazyTensor(shape, tensor.dtype, lambda: tensor.read().T)
        )
    if name.endswith(layout.flat):
        shape = (max(shape),)
    return OutputTensor(
        layout.name_of(name), shape, dtype, LazyTensor(shape, tensor.dtype, lambda: read().reshape(shape))
    )


def _main_type(tensors: Iterable[OutputTensor]) -> str:
    """That of most bytes."""
    sizes = dict.fromkeys(DTYPES, 0)
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _token_ids(tokens: SpecialTokens) -> dict[str, Any]:
    end = tokens.end[0] if len(tokens.end) == 1 else list(tokens.end) or None
    padding = END_OF_TEXT if tokens.padding is None else tokens.padding
    return {"bos_token_id": tokens.begin, "eos_token_id": end, "pad_token_id": padding}


def _config(
    layout: HuggingFace, config: RWKVConfig, own: dict[str, Any], token_ids: dict[str, Any], dtype: str
) -> dict[str, Any]:
    """``torch_dtype`` is what releases of transformers before 4.56 read, and later ones do too."""
    return {
        "architectures": [layout.architecture],
        **({"auto_map": _auto_map(layout)} if layout.code else {}),
        "model_type": layout.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "intermediate_size": config.intermediate_size,
        **own,
        **token_ids,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _auto_map(layout: HuggingFace) -> dict[str, str]:
    configuration, modeling = (file.removesuffix(".py") for file in layout.code[:2])
    return {
        "AutoConfig": f"{configuration}.{layout.configuration}",
        "AutoModel": f"{modeling}.{layout.base}",
        "AutoModelForCausalLM": f"{modeling}.{layout.architecture}",
    }


def _card(source: Source, model: BlinkDLTensors, dtype: str) -> str:
    config, checkpoint = model.config, source.checkpoint
    code = model.generation.hugging_face and model.generation.hugging_face.code
    trust = ", trust_remote_code=True" if code else ""
    trust_tokenizer = ", trust_remote_code=True" if source.vocabulary[0].suffix != ".json" else ""
    files = "\n".join(f"| file | `{path.name}` |" for path in checkpoint.files)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- rwkv
---

# {checkpoint.name}

RWKV-{config.generation}, {config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size}, trained
on texts of {config.context_length} tokens; weights in {dtype}.

| converted from | {checkpoint.format} |
|---|---|
{files}
| SHA-256 of the files | `{source.sha256}` |
| by | rwkv_mlc {__version__} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
model = AutoModelForCausalLM.from_pretrained(folder{trust})
tokenizer = AutoTokenizer.from_pretrained(folder{trust_tokenizer})
messages = [{{"role": "user", "content": "Hello"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
inputs = tokenizer(prompt, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(answer[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
```

The weights' license and limits are those of the model that they were converted from.
"""
