"""Two dumps side by side, in the order of execution: the first value whose inputs agree and which does not.

Rounding adds up from operation to operation, so a value is held to the error of its inputs: it is beyond tolerance where
its relative error is above ``rtol`` and above ``GROWTH`` times the largest among the values it is computed from. A norm brings
what is small to the size of the rest, with its error, so what a norm reads is measured head by head or row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..models import generation_of
from ..models.values import Value, nearest, place
from ..schema import DumpHeader, Family
from .dump import Dump
from .hints import Case, hints
from .measure import Difference, measure, relative_of_groups
from .nonfinite import first_nonfinite
from .weights import StoredWeights

RTOL = {"float64": 1e-4, "float32": 1e-4, "float16": 5e-3, "int21": 1e-4, "int15": 1e-3, "int8": 3e-2}
"""Relative root mean square by the coarser of the two dumps' activations: in float32 a right build is at about 1e-6, and
an epsilon of 1e-5 instead of 64e-5 shows."""
GROWTH = 10.0
UNROUNDED = (None, "q0f32")
SHAPE = ("generation", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "head_size")
UNIMPORTANT = ("context_length", "rescale_every", "float32")


@dataclass(frozen=True)
class Row:
    """One value in both dumps. ``limit`` is what its inputs leave it; ``beyond`` that it is above."""

    call: str
    value: str
    difference: Difference
    limit: float

    @property
    def name(self) -> str:
        return f"{self.call}/{self.value}"

    @property
    def place(self) -> tuple[int | None, str]:
        return place(self.value)

    @property
    def beyond(self) -> bool:
        return not self.difference.relative_rms <= self.limit


@dataclass(frozen=True)
class Finding:
    """The first value beyond tolerance. ``inputs`` are the nearest values before it that both dumps have, each with its
    relative error; ``between`` those on the way that one of them lacks, any of which may be at fault; ``kernel`` is what
    computed it in the first dump, and ``family`` that of the library which the dump is of."""

    row: Row
    rtol: float
    operation: str
    inputs: dict[str, float]
    between: list[str]
    parameters: list[str]
    kernel: str | None
    family: Family | None
    hints: list[str]

    @property
    def suspects(self) -> list[str]:
        return [self.row.value, *self.between]

    def sentences(self) -> list[str]:
        difference = self.row.difference
        inputs = ", ".join(f"{name} {error:.1e}" for name, error in self.inputs.items()) or "none but parameters"
        found = f"{difference.relative_rms:.1e} of its root mean square, limit {self.row.limit:.0e}"
        if difference.nonfinite:
            found = f"NaN or Inf: {difference.nonfinite}"
        reads = f" with {', '.join(self.parameters)}" if self.parameters else ""
        kernel = f", in the kernel {self.kernel}" if self.kernel else ""
        agree, output = "agree", "does not"
        if any(error > self.rtol for error in self.inputs.values()):
            agree, output = "are off", "is off by more than that explains"
        lines = [
            f"The inputs of {self.row.name} {agree} ({inputs}), its output {output} ({found}).",
            f"Look at this op: {self.operation}{reads}{kernel}.",
        ]
        if self.between:
            advice = ": --family plain says where" if self.family == "fused" else ""
            lines.append(
                f"Between them, and not in both dumps: {', '.join(self.between)}. It may as well be there{advice}."
            )
        return [*lines, *(f"Hint: {hint}." for hint in self.hints)]


@dataclass(frozen=True)
class Comparison:
    """``a`` is looked at, ``b`` is what it should be; ``rows`` are in the order of execution."""

    a: DumpHeader
    b: DumpHeader
    rtol: float
    rows: list[Row]
    finding: Finding | None
    nonfinite: list[str]
    notes: list[str]

    @property
    def agrees(self) -> bool:
        return self.finding is None and not self.nonfinite and not self.a.notes + self.b.notes

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not finite as a string, as JSON has no word for it."""
        data = {
            "agrees": self.agrees,
            "rtol": self.rtol,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "notes": self.notes,
            "nonfinite": self.nonfinite,
            "finding": None,
            "values": [
                {"name": row.name, "beyond": row.beyond, "limit": row.limit, **dataclasses.asdict(row.difference)}
                for row in self.rows
            ],
        }
        if self.finding:
            finding = {k: v for k, v in vars(self.finding).items() if k != "row"}
            data["finding"] = {"name": self.finding.row.name, "text": self.finding.sentences(), **finding}
        return _json(data)


def compare(a: Dump, b: Dump, rtol: float | None = None, weights: StoredWeights | None = None) -> Comparison:
    """``a`` against ``b``, which is trusted. ``rtol`` None means ``RTOL``; the ``weights`` that ``a`` was computed with
    help to find hints. Raises UserError for dumps of different models or tokens."""
    _check(a.header, b.header)
    nonfinite = [text for text in (first_nonfinite(a, b), first_nonfinite(b, a)) if text]
    a, b = a.unscaled(), b.unscaled()
    if rtol is None:
        rtol = max(RTOL[header.activations] for header in (a.header, b.header))
    config = b.header.config
    graph = generation_of(config).values(config)
    rows: dict[str, Row] = {}
    finding = None
    for call in (call for call in a.header.calls if call in b.header.calls):
        for value in graph.values():
            name = f"{call}/{value.name}"
            if name not in a.tensors or name not in b.tensors:
                continue
            inputs, between = nearest(graph, rows, call, value)
            errors = {source: _error_for(reader, source, rows[source], a, b) for source, reader in inputs.items()}
            limit = max([rtol, *(GROWTH * error for error in errors.values())])
            row = Row(call, value.name, measure(a.tensors[name], b.tensors[name]), limit)
            rows[name] = row
            if row.beyond and finding is None:
                finding = _finding(Case(a, b, call, value.name, graph, limit), row, rtol, errors, between, weights)
    return Comparison(a.header, b.header, rtol, list(rows.values()), finding, nonfinite, _notes(a.header, b.header))


def _error_for(reader: Value, name: str, row: Row, a: Dump, b: Dump) -> float:
    """The relative error of a value as its reader sees it."""
    config = b.header.config
    sizes = {"layer norm": config.hidden_size, "group norm": config.head_size}
    if reader.operation not in sizes:
        return row.difference.relative_rms
    return relative_of_groups(a.tensors[name], b.tensors[name], sizes[reader.operation])


def _finding(
    case: Case,
    row: Row,
    rtol: float,
    inputs: dict[str, float],
    between: list[Value],
    weights: StoredWeights | None,
) -> Finding:
    value = case.graph[case.value]
    return Finding(
        row=row,
        rtol=rtol,
        operation=value.operation,
        inputs=inputs,
        between=[v.name for v in between],
        parameters=[*value.parameters, *(p for v in between for p in v.parameters)],
        kernel=_kernel(case),
        family=case.a.header.family,
        hints=list(hints(case, weights)),
    )


def _kernel(case: Case) -> str | None:
    """What computed the value in A; a state is written by the kernel that reads it."""
    readers = [v.name for v in case.graph.values() if case.value in v.states]
    after = [v.name for v in case.graph.values() if set(v.inputs) & set(readers)]
    names = (f"{case.call}/{name}" for name in (case.value, *readers, *after))
    return next((kernel for name in names if (kernel := case.a.header.kernels.get(name))), None)


def _check(a: DumpHeader, b: DumpHeader) -> None:
    names = _different(a, b, (*SHAPE, *a.config.own, *b.config.own))
    if names:
        raise UserError(
            f"The dumps of {a.name} and {b.name} are of different models: they differ in {', '.join(names)}."
        )
    if a.tokens != b.tokens:
        raise UserError(f"The dumps are of different tokens: {_shown(a.tokens)} and {_shown(b.tokens)}; dump the same.")


def _notes(a: DumpHeader, b: DumpHeader) -> list[str]:
    notes = [note for header in (a, b) for note in header.notes]
    if a.sha256 != b.sha256:
        notes.append(f"{a.name} and {b.name} are of checkpoint files that differ.")
    config_a, config_b = a.config.to_dict(), b.config.to_dict()
    for field in _different(a, b, sorted(config_a.keys() - {*SHAPE, *UNIMPORTANT})):
        notes.append(f"{field} is {config_a[field]} in A and {config_b.get(field)} in B.")
    if a.quantization != b.quantization and not {a.quantization, b.quantization} <= set(UNROUNDED):
        notes.append(
            f"The weights of the dumps are rounded differently ({a.quantization} and {b.quantization}), which shows "
            f"everywhere: dump the reference with --quantization {a.quantization or b.quantization}."
        )
    return notes


def _different(a: DumpHeader, b: DumpHeader, fields: Iterable[str]) -> list[str]:
    config_a, config_b = a.config.to_dict(), b.config.to_dict()
    return [field for field in fields if config_a.get(field) != config_b.get(field)]


def _shown(tokens: list[int]) -> str:
    text = ",".join(map(str, tokens[:12]))
    return f"{text},..." if len(tokens) > 12 else text


def _json(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_json(value) for value in data]
    if isinstance(data, float) and not np.isfinite(data):
        return str(data)
    return data
