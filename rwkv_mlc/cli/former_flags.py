"""Flags that the ``build.py`` of mlc_llm had and ours has not: what to do in their place."""

from __future__ import annotations

_NO_SHARDS = "models are not split among devices; leave it out"
_OWN_KERNELS = "kernels are our own, with no library to choose; leave it out"
_SERVES_SEVERAL = "every library serves several texts at once (docs/engine.md); leave it out"
_NO_WINDOW = "an RWKV has no window of attention; leave it out"

FORMER_FLAGS = {
    "--cc-path": "the linker is found by itself (docs/targets.md); leave it out",
    "--db-path": "kernels are not taken from a database of tuned ones; leave it out",
    "--debug-load-script": "a dumped module is not read again; --debug-dump writes one, and rwkv-mlc debug finds what is wrong",
    "--enable-batching": _SERVES_SEVERAL,
    "--llvm-mingw": "there is no target for Windows; leave it out",
    "--max-batch-size": _SERVES_SEVERAL,
    "--max-vocab-size": "the model's whole vocabulary is taken; leave it out",
    "--no-cublas": _OWN_KERNELS,
    "--no-cutlass-attn": _OWN_KERNELS,
    "--no-cutlass-norm": _OWN_KERNELS,
    "--num-shards": _NO_SHARDS,
    "--pdb": "RWKV_MLC_TRACEBACKS=1 in the environment shows the traceback of a fault",
    "--prefill-chunk-size": "a library says how much one call reads; prefill_chunk_size in mlc-chat-config.json makes it less",
    "--sep-embed": "the embedding is a part of the model, as it was for every RWKV; leave it out",
    "--sliding-window": _NO_WINDOW,
    "--sliding-window-chunk-size": _NO_WINDOW,
    "--use-cuda-graph": "decoding is a CUDA graph wherever the device takes one; leave it out",
    "--use-flash-attn-mqa": _OWN_KERNELS,
    "--use-presharded-weights": _NO_SHARDS,
    "--use-safetensors": "the format of a checkpoint is told by its content; leave it out",
    "--use-vllm-attention": _OWN_KERNELS,
}
