"""One engine in a process of its own: how fast it reads and writes, or the logits that it gives (see peers.py)."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rwkv_mlc.artifact import write_json
from rwkv_mlc.bench import timing
from rwkv_mlc.bench.memory import peak_memory
from rwkv_mlc.bench.timing import Timing


class Engine(Protocol):
    """``read`` gives the logits, float32 [V], after the last of some tokens and goes on from those read since
    ``reset``; ``weight_bytes`` are those that one token reads, all but the embedding's."""

    weight_bytes: int

    def reset(self) -> None: ...

    def read(self, tokens: Sequence[int]) -> np.ndarray: ...


class Ours:
    def __init__(self, model: Path, threads: int, device: str):
        from rwkv_mlc.engine.threads import start_threads

        start_threads(threads)
        from rwkv_mlc.bench.speed import bytes_read
        from rwkv_mlc.engine.engine import Engine

        self.engine = Engine(model, device)
        self.weight_bytes = sum(bytes_read(self.engine).values())
        self.reset()

    def reset(self) -> None:
        self.state = self.engine.new_state()

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        if len(tokens) == 1:
            return self.engine.decode(tokens[0], self.state)
        return self.engine.prefill(tokens, self.state)


class RwkvPackage:
    """The ``rwkv`` package; ``strategy`` is its own word for device and dtype, such as "cuda fp16"."""

    def __init__(self, model: Path, threads: int, _device: str, strategy: str):
        os.environ["RWKV_CUDA_ON"] = "0"
        import torch
        from rwkv.model import RWKV

        torch.set_num_threads(threads)
        self.model = RWKV(model=str(model), strategy=strategy, verbose=False)
        weights = {name: w for name, w in self.model.w.items() if isinstance(w, torch.Tensor)}
        self.weight_bytes = sum(w.nbytes for name, w in weights.items() if name != "emb.weight")
        self.reset()

    def reset(self) -> None:
        self.state = None

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        logits, self.state = self.model.forward(list(tokens), self.state)
        return logits.float().cpu().numpy()


class Transformers:
    """``RwkvForCausalLM``, which knows generation 4, in float32 on a CPU and float16 on a GPU."""

    def __init__(self, model: Path, threads: int, device: str):
        import torch
        import transformers

        from rwkv_mlc.models import resolve
        from rwkv_mlc.weights import open_checkpoint
        from rwkv_mlc.weights.huggingface import blinkdl_names

        torch.set_num_threads(threads)
        config, _, tensors = resolve(open_checkpoint(str(model)))
        shape = transformers.RwkvConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            attention_hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
        )
        self.torch, self.model = torch, transformers.RwkvForCausalLM(shape).eval()
        named = blinkdl_names(self.model.state_dict())
        if named.keys() != tensors.keys():
            raise SystemExit("error: transformers knows RWKV-4 only.")
        for source, tensor in named.items():
            tensor.copy_(torch.from_numpy(tensors[source].read()))
        self.device = device
        self.model = self.model.to(device, torch.float32 if device == "cpu" else torch.float16)
        parameters = dict(self.model.named_parameters())
        self.weight_bytes = sum(p.nbytes for name, p in parameters.items() if "embeddings" not in name)
        self.reset()

    def reset(self) -> None:
        self.state = None

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        with self.torch.no_grad():
            ids = self.torch.tensor([list(tokens)], device=self.device)
            output = self.model(ids, state=self.state, use_cache=True, logits_to_keep=1)
        self.state = output.state
        return output.logits[0, -1].float().cpu().numpy()


def rwkv_cpp(model: Path, threads: int, _device: str, library: str) -> Engine:
    from rwkv_cpp import RwkvCpp

    return RwkvCpp(Path(library), model, threads)


ENGINES: dict[str, Callable[..., Engine]] = {
    "rwkv_mlc": Ours,
    "rwkv": RwkvPackage,
    "transformers": Transformers,
    "rwkv.cpp": rwkv_cpp,
}


def speeds(engine: Engine, tokens: list[int], steps: int) -> dict[str, float]:
    """Tokens a second of reading ``tokens`` at once and of at least ``steps`` single ones; medians."""

    def prefill() -> None:
        engine.reset()
        engine.read(tokens)

    following = itertools.cycle(tokens)
    prefilling = Timing.of(prefill)
    decoding = Timing.of(lambda: engine.read([next(following)]), steps)
    return {"prefill": len(tokens) / prefilling.median, "decode": 1 / decoding.median}


def limits(model: Path, threads: int, device: str) -> dict[str, float]:
    """What the device reads and multiplies a second, by an artifact's library and by PyTorch's or numpy's product."""
    from rwkv_mlc.bench.limits import GemmPeak, read_bandwidth

    engine = Ours(model, threads, device).engine
    return {"read_bandwidth": read_bandwidth(engine)(), "gemm_peak": GemmPeak.on(engine).measure()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("speeds", "logits", "limits"))
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("options", nargs="*", help="strategy of the rwkv package; shared library of rwkv.cpp")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=lambda text: [int(token) for token in text.split(",")], default=[])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=timing.MIN_SECONDS, help="that a measurement takes at least")
    parser.add_argument("--out", type=Path, required=True, help="JSON, or the logits as .npy")
    args = parser.parse_args()
    timing.MIN_SECONDS = args.seconds
    if args.task == "limits":
        write_json(args.out, limits(args.model, args.threads, args.device))
        return
    began = time.perf_counter()
    engine = ENGINES[args.engine](args.model, args.threads, args.device, *args.options)
    load_seconds = time.perf_counter() - began
    if args.task == "logits":
        np.save(args.out, engine.read(args.tokens))
        return
    result = speeds(engine, args.tokens, args.steps)
    result |= {"load_seconds": load_seconds, "memory_bytes": peak_memory(), "weight_bytes": engine.weight_bytes}
    write_json(args.out, result)


if __name__ == "__main__":
    main()
