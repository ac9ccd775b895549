"""What ``build --debug-dump`` writes beside the modules: every kernel in a file of its own, the generated code, and an
index of all of it with the table of named values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import tvm
from tvm import relax, tirx

from ..artifact.disk import beside
from ..schema import KernelValues, LibraryMetadata

INDEX, KERNELS, CODE = "index.md", "kernels", "code"
SUFFIXES = {"llvm": "ll", "cuda": "cu", "opencl": "cl", "metal": "metal", "c": "c"}


def write_index(
    folder: Path,
    phases: Sequence[tuple[str, Sequence[str]]],
    graph: tvm.IRModule,
    mod: tvm.IRModule,
    executable: tvm.runtime.Executable,
) -> None:
    """``phases`` are the names of the dumped modules, each with those of its passes; ``graph`` is the first of them and
    ``mod`` the last."""
    kernels = {name.name_hint: f for name, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    functions = [name.name_hint for name, f in mod.functions_items() if isinstance(f, relax.Function)]
    for name, kernel in kernels.items():
        _write(folder / KERNELS / f"{name}.py", kernel.script())
    code = []
    for i, module in enumerate(executable.mod.imports):
        code.append(f"{CODE}-{i}.{SUFFIXES.get(str(module.kind), 'txt')}")
        _write(folder / code[-1], module.inspect_source())
    values = _values(graph)
    calls = Counter(kernel for records in values.values() for kernel, _ in records)
    factories = {name: kernel.attrs.get("kernel", "") for name, kernel in kernels.items()}
    sections = [
        "# What the compiler made",
        "## Phases",
        _table(("module", "passes"), ((f"[{name}.py]({name}.py)", ", ".join(passes)) for name, passes in phases)),
        "## Generated code",
        *(f"- [{name}]({name})" for name in code),
        "## Functions",
        _table(("function", "kernel calls"), ((name, _count(values.get(name))) for name in sorted(functions))),
        "## Kernels",
        _table(
            ("kernel", "factory in `tir_kernels`", "named calls"),
            ((f"[{name}]({KERNELS}/{name}.py)", factories[name], calls[name]) for name in sorted(kernels)),
        ),
        *(_function(name, records) for name, records in values.items() if records),
    ]
    _write(folder / INDEX, "\n\n".join(sections) + "\n")


def _values(graph: tvm.IRModule) -> dict[str, tuple[KernelValues, ...]]:
    """As in the library's metadata."""
    metadata = [f for name, f in graph.functions_items() if name.name_hint == "_metadata"]
    return LibraryMetadata.read(metadata[0].body.body.value).values if metadata else {}


def _function(name: str, records: Sequence[KernelValues]) -> str:
    rows = (
        (i, f"[{kernel}]({KERNELS}/{kernel}.py)", argument, ", ".join([names] if isinstance(names, str) else names))
        for i, (kernel, outputs) in enumerate(records)
        for argument, names in outputs.items() or [("", "")]
    )
    return f"## Values of `{name}`\n\n{_table(('call', 'kernel', 'argument', 'values'), rows)}"


def _count(records: Sequence[KernelValues] | None) -> str:
    return str(len(records)) if records else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as partial:
        partial.write_text(text, encoding="utf-8")
