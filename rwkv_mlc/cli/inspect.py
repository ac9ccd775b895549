"""``inspect``: what a checkpoint or an artifact holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..escaping import escaped_values, listed
from .arguments import integer, path_or_name
from .faults import say
from .progress import counted
from .tables import Table, console, pairs

ALL = "all"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("inspect", help="show what a checkpoint or an artifact holds")
    parser.add_argument(
        "path",
        metavar="PATH",
        type=path_or_name,
        help="artifact folder, or a folder of them; checkpoint file, folder or hub repository",
    )
    parser.add_argument(
        "--errors",
        nargs="?",
        const="",
        type=path_or_name,
        metavar="CHECKPOINT",
        help="show what each quantized tensor of an artifact lost against a checkpoint (the one it was built from), or "
        "of a checkpoint in the schemes of --quantization",
    )
    parser.add_argument(
        "--quantization",
        action="append",
        default=[],
        metavar="SCHEME",
        help=f"show what a scheme would cost a checkpoint; may be given several times, {ALL} for every scheme",
    )
    parser.add_argument(
        "--head-size-divisor", type=integer(1), metavar="N", help="of the heads' group norm, where not 8"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..artifact import artifacts_in, is_artifact
    from ..weights.huggingface import holds_weights

    folder = Path(args.path)
    if not is_artifact(folder) and not holds_weights(folder) and (artifacts := artifacts_in(folder)):
        return _list(args, artifacts)
    summary = (_artifact if is_artifact(args.path) else _checkpoint)(args)
    if args.json:
        say(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        _print(escaped_values(summary))
    return 0


def _list(args: argparse.Namespace, artifacts: list[Path]) -> int:
    """The artifacts in a folder, a row each. Raises UserError for what is asked of one of them."""
    from .. import inspection

    if args.errors is not None or args.quantization or args.head_size_divisor is not None:
        raise UserError(f"{args.path} holds {len(artifacts)} artifacts; name one, or leave the flags out.")
    rows = [inspection.artifact_row(path) for path in artifacts]
    if args.json:
        say(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = Table("artifact", "model", "scheme", "bytes", "libraries", justify="left")
    whole = [row for row in escaped_values(rows) if not row["problem"]]
    for row in whole:
        table.add_row(row["path"], row["model"], row["quantization"], f"{row['bytes']:,}", ", ".join(row["libraries"]))
    if whole:
        console().print(table)
    for row in rows:
        if row["problem"]:
            say(row["problem"])
    return 0


def _artifact(args: argparse.Namespace) -> dict[str, Any]:
    from .. import inspection
    from ..artifact import Artifact

    if args.quantization:
        raise UserError(f"{args.path} is quantized already; give --quantization with a checkpoint.")
    if args.head_size_divisor is not None:
        raise UserError(f"{args.path} has a head size divisor already; give --head-size-divisor with a checkpoint.")
    artifact = Artifact.open(args.path)
    summary = inspection.artifact_summary(artifact)
    if args.errors is not None:
        with counted("measuring") as progress:
            summary["errors"] = inspection.artifact_errors(artifact, args.errors or None, progress)
    return summary


def _checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    from .. import inspection
    from ..models import ModelOptions
    from ..quantization.schemes import SCHEMES, get_scheme
    from ..weights import open_checkpoint

    names = list(SCHEMES) if ALL in args.quantization else args.quantization
    schemes = [get_scheme(name) for name in names]
    options = ModelOptions(head_size_divisor=args.head_size_divisor)
    checkpoint = open_checkpoint(args.path)
    if args.errors:
        raise UserError(f"{args.path} is a checkpoint itself; give --errors {args.errors} with an artifact.")
    if args.errors is not None and not schemes:
        raise UserError("The errors of a checkpoint are those of a scheme; name one with --quantization.")
    summary = inspection.checkpoint_summary(checkpoint, options)
    if schemes:
        summary["schemes"] = []
    for scheme in schemes:
        try:
            with counted(f"measuring {scheme.name}") as progress:
                cost = inspection.scheme_cost(checkpoint, scheme, progress)
        except UserError as error:
            if ALL not in args.quantization:
                raise
            cost = {"quantization": scheme.name, "problem": str(error)}
        if args.errors is None:
            cost.pop("tensors", None)
        summary["schemes"].append(cost)
    return summary


def _print(summary: dict[str, Any]) -> None:
    out = console()
    out.print(f"{summary['name']} ({summary['kind']})")
    out.print(pairs(_facts(summary)))
    out.print(_groups(summary))
    for library in summary.get("libraries", ()):
        out.print(f"Library for {library['target']}")
        out.print(pairs(_library_facts(library)))
    schemes = summary.get("schemes", [])
    measured = [scheme for scheme in schemes if "problem" not in scheme]
    tables = {scheme["quantization"]: scheme["tensors"] for scheme in measured if "tensors" in scheme}
    if "errors" in summary:
        tables[summary["quantization"]] = summary["errors"]
    if measured or tables:
        out.print("Errors are root mean squares, as parts of the tensor's own; a worst group is named by its start.")
    if measured:
        out.print(_schemes(measured))
    for scheme in schemes:
        if "problem" in scheme:
            out.print(f"{scheme['quantization']}: {scheme['problem']}")
    for name, errors in tables.items():
        out.print(f"Errors of {name}")
        out.print(_errors(errors))


def _facts(summary: dict[str, Any]) -> Iterable[tuple[str, str]]:
    model, tokenizer = summary["model"], summary["tokenizer"]
    heads = f", {model['num_heads']} heads of {model['head_size']}" if model["num_heads"] else ""
    yield (
        "model",
        (
            f"RWKV-{model['generation']}, {model['num_hidden_layers']} layers of {model['hidden_size']}{heads}, "
            f"feed-forward {model['intermediate_size']}, vocabulary {model['vocab_size']}, "
            f"context {model['context_length']}"
        ),
    )
    if model["num_heads"]:
        yield "group norm", f"epsilon 1e-5 x {model['head_size_divisor']}^2"
    yield "state", f"{model['state_bytes']:,} bytes a sequence"
    if "problem" in tokenizer:
        yield "tokenizer", f"none: {tokenizer['problem']}"
    else:
        yield "tokenizer", f"{tokenizer['kind']}, {tokenizer['tokens']} tokens, {tokenizer['file']}"
    if summary["kind"] == "checkpoint":
        yield "format", f"{summary['format']}, {', '.join(summary['dtypes'])}"
        for file in summary["files"]:
            yield "file", f"{file['file']}, {file['bytes']:,} bytes"
        return
    source = summary["source"]
    yield "template", str(summary["template"])
    if state := summary["initial_state"]:
        yield "texts begin with", f"the state {state['source']}"
    yield "quantization", f"{summary['quantization']}, {summary['bits_per_weight']:.2f} bits per weight"
    for kept in summary["kept"]:
        yield f"stays {kept['dtype']}", f"{_named(kept)}: {kept['reason']}"
    if wide := model["float32"]:
        yield "computed in float32", listed(wide)
    yield "source", f"{source['source']} ({source['format']})"
    if lora := summary["lora"]:
        yield "merged", f"{lora['file']}, alpha {lora['alpha']:g}"
    yield "sha256", source["sha256"]
    yield "converted", f"{summary['time']} by {_versions(summary['versions'])}"


KINDS = {"kept": "matrices", "low_rank": "low-rank matrices", "table": "tables"}


def _named(kept: dict[str, Any]) -> str:
    """A matrix alone by its name, several by their number."""
    names = kept["tensors"]
    return names[0] if len(names) == 1 else f"{len(names)} {KINDS[kept['role']]}"


def _library_facts(library: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "file", f"{library['file']}, {library['bytes']:,} bytes"
    yield "CPU", f"{library['cpu'] or 'any'}, {library['triple']}"
    yield "CPU features", " ".join(library["cpu_features"]) or "none"
    yield "family", library["family"]
    yield "functions of", {"native": "rwkv-mlc", "mlc": "mlc_llm", "both": "rwkv-mlc and mlc_llm"}[library["abi"]]
    yield "reads prompts with", f"{library['prefill_activations']} activations"
    yield "compiled", f"{library['time']} by {_versions(library['versions'])}"
    yield "runs here", "yes" if library["runs_here"] else f"no: {library['problem']}"
    if memory := library["memory"]:
        parts = f"parameters {memory['parameters']:,}, states {memory['states']:,}, a call {memory['call']:,}"
        yield "memory of a chat", f"{memory['total']:,} bytes: {parts}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _groups(summary: dict[str, Any]):
    rows = Table("group", "tensors", "parameters", "bytes", "of all bytes")
    for group in (
        *summary["groups"],
        {**summary, "name": "all", "tensors": sum(g["tensors"] for g in summary["groups"])},
    ):
        share = f"{group['bytes'] / summary['bytes']:.1%}"
        rows.add_row(group["name"], *(f"{group[key]:,}" for key in ("tensors", "parameters", "bytes")), share)
    return rows


def _schemes(schemes: list[dict[str, Any]]):
    rows = Table("scheme", "bytes", "bits per weight", "RMS", "worst group")
    for scheme in schemes:
        rows.add_row(
            scheme["quantization"],
            f"{scheme['bytes']:,}",
            f"{scheme['bits_per_weight']:.2f}",
            *(f"{scheme[key]:.2e}" for key in ("relative_rms", "worst_group")),
        )
    return rows


def _errors(errors: list[dict[str, Any]]):
    rows = Table("tensor", "shape", "stored as", "RMS", "worst group", "at")
    for error in errors:
        rows.add_row(
            error["name"],
            " x ".join(map(str, error["shape"])),
            error["stored"],
            f"{error['relative_rms']:.2e}",
            f"{error['worst_group']:.2e}",
            f"{error['worst_row']}, {error['worst_column']}",
        )
    return rows
