"""The two families side by side: how fast an artifact of each reads and decodes, and how long the kernels take that compute
the same values.

    python tools/benchmarks/families.py dist/NAME-fused dist/NAME-plain [--device vulkan] [--tokens 16] [--rounds 3]

The runs take turns in one process. Where the kernels of ``decode`` are merged into few, as ours on CPUs are, they are timed
in ``batch_decode``. A device is waited for before and after each kernel.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rwkv_mlc.bench.breakdown import instrumented
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.engine.tvm_runtime import synchronize
from rwkv_mlc.models import generation_of
from rwkv_mlc.schema import KernelValues

CLOSE = 1.1  # times as long as the other
KEPT = "kept for the next call"


def same_values(
    config: RWKVConfig, fused: Sequence[KernelValues], plain: Sequence[KernelValues]
) -> list[tuple[str, list[int], list[int]]]:
    """(values, fused calls, plain calls) for what each fused kernel computes, all layers together; calls are positions. A value
    that fused kernels keep to themselves counts to the one that is computed from it, a call that writes none to the next
    that does, and what keeps the last rows for the next call stands alone."""
    graph = generation_of(config).values(config)
    groups: dict[str, tuple[list[int], list[int]]] = {}
    group_of: dict[str, str] = {}
    for call in fused:
        names = written(call)
        roles = dict.fromkeys(re.sub(r"^blocks\.\d+\.", "", name) for name in names)
        group_of |= dict.fromkeys(names, ", ".join(roles))
    for value in reversed(graph.values()):
        for source in value.inputs:
            if value.name in group_of:
                group_of.setdefault(source, group_of[value.name])
    for side, calls in enumerate((fused, plain)):
        waiting: list[int] = []
        for i, call in enumerate(calls):
            waiting.append(i)
            names = [KEPT] if call.kernel.startswith("keep_rows") else [group_of[name] for name in written(call)]
            if names:
                groups.setdefault(names[0], ([], []))[side].extend(waiting)
                waiting = []
    return [(values, *calls) for values, calls in groups.items()]


def written(call: KernelValues) -> list[str]:
    """The names of the values that a kernel call writes."""
    return [name for names in call.outputs.values() for name in ([names] if isinstance(names, str) else names)]


def seconds_of_call(runner: Runner, function: str, tokens: list[int]) -> float:
    state = runner.new_state()
    began = time.perf_counter()
    runner.run(function, [tokens], state)
    return time.perf_counter() - began


def seconds_of_kernels(runner: Runner, function: str, tokens: list[int]) -> list[float]:
    """Of each call that the metadata lists."""
    listed = {kernel for kernel, _ in runner.metadata.values[function]}
    seconds: list[float] = []
    began = 0.0

    def instrument(_function, name, before, _result, *_args):
        nonlocal began
        if name not in listed:
            return
        synchronize(runner.device)
        if before:
            began = time.perf_counter()
        else:
            seconds.append(time.perf_counter() - began)

    state = runner.new_state()
    with instrumented(runner, instrument):
        runner.run(function, [tokens], state)
    return seconds


def show(runners: list[Runner], function: str, kernels_of: str, tokens: list[int], rounds: int) -> None:
    calls: list[list[float]] = [[], []]
    kernels: list[list[list[float]]] = [[], []]
    for _ in range(rounds):
        for side, runner in enumerate(runners):
            calls[side].append(seconds_of_call(runner, function, tokens))
            kernels[side].append(seconds_of_kernels(runner, kernels_of, tokens))
    fused, plain = (np.median(times) for times in calls)
    own = [np.median(times, axis=0) for times in kernels]
    title = f"{function} of {len(tokens)}: {len(tokens) / fused:.1f} and {len(tokens) / plain:.1f} tok/s, {plain / fused:.2f} x"
    table = Table("values", "fused: kernels", "ms", "plain: kernels", "ms", "plain over fused", "", title=title)
    for values, *numbers in same_values(runners[0].config, *(runner.metadata.values[kernels_of] for runner in runners)):
        ms = [float(times[of].sum()) * 1e3 for times, of in zip(own, numbers)]
        close = "close" if ms[0] and ms[1] <= CLOSE * ms[0] else ""
        cells = [cell for of, time in zip(numbers, ms) for cell in (str(len(of)), f"{time:.3f}")]
        table.add_row(values, *cells, f"{ms[1] / ms[0]:.2f}" if ms[0] else "", close)
    Console(width=200).print(table, highlight=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fused", type=Path)
    parser.add_argument("plain", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=16, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    runners = [Engine(path, args.device).runner for path in (args.fused, args.plain)]
    for runner in runners:  # the first run of a library is not like the others
        for function, tokens in (("prefill", [1] * args.tokens), ("decode", [1]), ("batch_decode", [1])):
            seconds_of_call(runner, function, tokens)
    separate = "decode" if all(runner.metadata.values["decode"] for runner in runners) else "batch_decode"
    show(runners, "decode", separate, [1], args.rounds)
    show(runners, "prefill", "prefill", [1 + i % 50 for i in range(args.tokens)], args.rounds)


if __name__ == "__main__":
    main()
