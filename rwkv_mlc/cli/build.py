"""``build`` and its three parts: ``convert-weight``, ``gen-config`` and ``compile``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..building.steps import Source
    from ..config import RWKVConfig
    from ..graph.model import Activations
    from ..quantization.schemes import Scheme


def add_parsers(subparsers) -> None:
    """Add the four commands."""
    parser = subparsers.add_parser("build", help="build an artifact from a checkpoint: convert, configure, compile")
    _add_source(parser)
    _add_target(parser)
    parser.add_argument("--artifact-path", type=Path, default=Path("dist"), help="folder of artifacts (dist)")
    parser.add_argument(
        "--use-cache", type=int, choices=(0, 1), default=1, help="0 converts again what is converted already (1)"
    )
    parser.add_argument(
        "--auto-precision",
        action="store_true",
        help="keep in float32 what float16 would not hold, as found by reading a text; takes the model's size in float32 of memory",
    )
    parser.add_argument("--reuse-lib", type=Path, help="add this library of a model of the same shape, compile none")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--convert-weights-only", "--convert-weight-only", action="store_true", help="write all but the library"
    )
    only.add_argument("--build-model-only", action="store_true", help="write the library of an artifact that is there")
    parser.set_defaults(run=run_build)

    parser = subparsers.add_parser("convert-weight", help="write an artifact's parameters and build record")
    _add_source(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="artifact folder")
    parser.set_defaults(run=run_convert_weight)

    parser = subparsers.add_parser("gen-config", help="write an artifact's tokenizer files and mlc-chat-config.json")
    _add_source(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="artifact folder")
    parser.set_defaults(run=run_gen_config)

    parser = subparsers.add_parser("compile", help="add the library for a target to an artifact")
    parser.add_argument("artifact", type=Path, help="artifact folder")
    _add_target(parser)
    parser.set_defaults(run=run_compile)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint file or folder, a name below <artifact-path>/models, or a preset")
    parser.add_argument("--hf-path", help="hub repository, owner/name")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--quantization", default="q4f16_1", help="scheme (q4f16_1)")
    parser.add_argument("--random-weights", action="store_true", help="draw weights for a preset of configs/models")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (0)")
    parser.add_argument("--tokenizer", type=Path, help="vocabulary file or folder, where not beside the checkpoint")
    parser.add_argument("--template", help="prompt template of configs/templates, where not the model's usual one")
    parser.add_argument("--head-size-divisor", type=int, help="of generation 5's group norm, where not 8")
    parser.add_argument(
        "--fp32-layers",
        type=_numbers,
        default=[],
        metavar="0,1",
        help="layers without float16, where the target has it",
    )
    parser.add_argument(
        "--fp32", type=_names, default=[], metavar="ffn.key,..", help="values without float16 in every layer"
    )
    parser.add_argument(
        "--rescale-every", type=int, default=0, metavar="N", help="halve the residual stream behind every N-th layer"
    )
    parser.add_argument("--max-seq-len", type=int, default=-1, help="context length to note, where not the model's")


def _add_target(parser: argparse.ArgumentParser) -> None:
    text = (
        "auto (this machine's best device), llvm, cuda, metal, vulkan, opencl, android or android-cpu, also with TVM's "
        'options ("llvm -mcpu=NAME", "cuda -arch=sm_90"), or a TVM target as JSON; an artifact has one library for each'
    )
    parser.add_argument("--target", default="auto", help=text)
    parser.add_argument("--mcpu", help="CPU to compile for, in LLVM's names (this machine's)")
    parser.add_argument(
        "--int8-prefill", action="store_true", help="read prompts faster and less exactly; bench tells by how much"
    )
    parser.add_argument("--debug-dump", action="store_true", help="write the module after every phase to debug/")
    parser.add_argument("--system-lib", action="store_true", help="object files to link into a program, as .tar")


def run_build(args: argparse.Namespace) -> int:
    from ..artifact import Artifact, artifact_name, staging
    from ..building import steps as build
    from ..errors import UserError
    from ..quantization.schemes import get_scheme

    scheme = get_scheme(args.quantization)
    if args.reuse_lib and args.int8_prefill:
        raise UserError("--reuse-lib adds a library as it was compiled; leave --int8-prefill out.")
    if not args.reuse_lib and not args.convert_weights_only:
        _check_target(args, scheme)
    source = _open_source(args, models_dir=args.artifact_path / "models")
    if args.auto_precision:
        source = _auto_precision(args, source, scheme)
    name = artifact_name(source.checkpoint.name, scheme.name)
    final = args.artifact_path / name
    build.check_output(final)
    if args.build_model_only:
        if Artifact.open(final).config != source.config:
            raise UserError(f"{final} holds another model than {source.checkpoint.name}; leave --build-model-only out.")
        with staging(final, keep=lambda file: True) as folder:
            _add_library(args, source.config, scheme, folder, final)
    else:
        reuse = args.use_cache and build.matching_parameters(final, source, scheme)
        with staging(final, build.is_no_config if reuse else None) as folder:
            if reuse:
                print(f"Reuse parameters in {final / 'params'}. You can use --use-cache=0 to convert them again")
            else:
                _convert(source, scheme, name, folder, final)
            _configure(source, scheme, name, folder, final)
            if not args.convert_weights_only:
                _add_library(args, source.config, scheme, folder, final)
    print(f"Finish building {final}")
    return 0


def run_convert_weight(args: argparse.Namespace) -> int:
    from ..artifact import staging
    from ..building import steps as build
    from ..quantization.schemes import get_scheme

    scheme = get_scheme(args.quantization)
    source = _open_source(args)
    build.check_output(args.output)
    with staging(args.output, build.is_config) as folder:
        _convert(source, scheme, args.output.resolve().name, folder, args.output)
    return 0


def run_gen_config(args: argparse.Namespace) -> int:
    from ..artifact import staging
    from ..building import steps as build
    from ..quantization.schemes import get_scheme

    scheme = get_scheme(args.quantization)
    source = _open_source(args)
    build.check_output(args.output)
    with staging(args.output, build.is_no_config) as folder:
        _configure(source, scheme, args.output.resolve().name, folder, args.output)
    return 0


def run_compile(args: argparse.Namespace) -> int:
    from ..artifact import Artifact, staging

    artifact = Artifact.open(args.artifact)
    _check_target(args, artifact.scheme)
    with staging(artifact.path, keep=lambda file: True) as folder:
        _compile(args, artifact.config, artifact.scheme, folder, artifact.path)
    return 0


def _open_source(args: argparse.Namespace, models_dir: Path = Path("dist/models")) -> Source:
    from ..building import steps as build
    from ..building.precision import float32_patterns
    from ..errors import UserError
    from ..models import ModelOptions

    if args.model and args.hf_path and Path(args.hf_path).name != Path(args.model).name:
        raise UserError(f"--model {args.model} and --hf-path {args.hf_path} name different models; give one of them.")
    if not args.model and not args.hf_path:
        raise UserError("Give a checkpoint with --model PATH, or a hub repository with --hf-path owner/name.")
    options = ModelOptions(
        head_size_divisor=args.head_size_divisor,
        context_length=None if args.max_seq_len == -1 else args.max_seq_len,
        rescale_every=args.rescale_every,
    )
    checkpoint = build.open_source(
        args.hf_path or args.model,
        models_dir=models_dir,
        random_seed=args.seed if args.random_weights else None,
        revision=args.revision,
    )
    source = build.Source.of(checkpoint, options, args.tokenizer, args.template)
    source = source.with_float32(float32_patterns(source.config, args.fp32_layers, args.fp32))
    if args.hf_path:
        print(f"Weights exist at {checkpoint.files[0].parent}")
    shape = f"RWKV-{source.config.generation}, {source.config.num_hidden_layers} layers of {source.config.hidden_size}"
    print(f'Using path "{checkpoint.source}" for model "{checkpoint.name}": {shape}')
    return source


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, found {text!r}") from None


def _names(text: str) -> list[str]:
    return text.split(",")


def _auto_precision(args: argparse.Namespace, source: Source, scheme: Scheme) -> Source:
    """The source with what ``args.target`` should keep in float32; a table says why."""
    from rich.console import Console
    from rich.table import Table

    from ..compiler.targets import resolve_target

    with Console(stderr=True).status("Looking for values that float16 does not hold..."):
        found = source.wide_values(scheme, resolve_target(args.target, args.mcpu))
    if not found:
        print("Auto precision: every value fits")
        return source
    table = Table("value", "largest magnitude", "float16", title="Auto precision: kept in float32")
    for value in found:
        table.add_row(value.name, f"{value.largest:.4g}", "overflows" if value.overflows else "comes near")
    Console().print(table)
    return source.with_float32(value.name for value in found)


def _activations(args: argparse.Namespace) -> Activations:
    return "int8" if args.int8_prefill else "float32"


def _check_target(args: argparse.Namespace, scheme: Scheme) -> None:
    """Before anything takes time. Raises UserError for an unknown target, where a tool for it is missing, and for
    activations that it or the scheme does not have."""
    from ..artifact.names import OBJECTS
    from ..compiler.link import check_tools
    from ..compiler.targets import resolve_target
    from ..graph.model import check_activations

    target = resolve_target(args.target, args.mcpu)
    check_activations(_activations(args), scheme, target)
    check_tools(target, OBJECTS if args.system_lib else target.suffix)
    print(f"Target configured: {target.tvm}")


def _convert(source: Source, scheme: Scheme, name: str, folder: Path, final: Path) -> None:
    from ..artifact import PARAMS
    from ..artifact.names import TENSOR_INDEX
    from ..building import steps as build

    print("Start computing and quantizing weights... This may take a while.")
    print(f"Start storing to cache {final / PARAMS}")
    with _progress() as report:
        conversion = build.write_parameters(source, scheme, name, folder, report)
    print("Finish computing and quantizing weights.")
    bits = 8 * conversion.nbytes / conversion.parameters
    print(f"Total param size: {conversion.nbytes / 1e9:.3f} GB, {bits:.2f} bits each")
    index = final / PARAMS / TENSOR_INDEX
    print(f"All finished, {conversion.shards} total shards committed, record saved to {index}")


def _configure(source: Source, scheme: Scheme, name: str, folder: Path, final: Path) -> None:
    from ..building import steps as build

    path = build.write_config(source, scheme, name, folder)
    print(f"Finish exporting chat config to {final / path.relative_to(folder)}")


def _add_library(args: argparse.Namespace, config: RWKVConfig, scheme: Scheme, folder: Path, final: Path) -> None:
    from ..building import steps as build

    if not args.reuse_lib:
        return _compile(args, config, scheme, folder, final)
    print(f"Reuse existing prebuilt lib {args.reuse_lib}...")
    library = build.reuse_library(args.reuse_lib, config, scheme, folder)
    print(f"Finish exporting to {final / library.path.name}")


def _compile(args: argparse.Namespace, config: RWKVConfig, scheme: Scheme, folder: Path, final: Path) -> None:
    from rich.console import Console

    from ..building import steps as build

    dump_dir = folder / "debug" if args.debug_dump else None
    with Console(stderr=True).status("Compiling...") as status:
        library = build.compile_library(
            config,
            scheme,
            args.target,
            folder,
            mcpu=args.mcpu,
            dump_dir=dump_dir,
            system_lib=args.system_lib,
            prefill_activations=_activations(args),
            progress=lambda done, total, last: status.update(f"Compiling... {last}, {done} of {total}"),
        )
    for path in sorted(dump_dir.iterdir()) if dump_dir else ():
        print(f"Dump mod to {final / path.relative_to(folder)}")
    if args.int8_prefill:
        print("Prompts are read with int8 activations. You can use rwkv-mlc bench to see the error")
    print(f"Finish exporting to {final / library.path.name}")


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str, int], None]]:
    """A bar over the stored tensors; the function moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    count = TextColumn("[{task.completed:04d}/{task.total:04d}]", markup=False)
    name = TextColumn("saving {task.description}", markup=False)
    with Progress(count, BarColumn(), TimeElapsedColumn(), name) as bar:
        task = bar.add_task("", total=0)

        def report(i: int, n: int, name: str, nbytes: int) -> None:
            bar.update(task, completed=i, total=n, description=name)

        yield report
