"""``build`` and its three parts: ``convert-weight``, ``gen-config`` and ``compile``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def add_parsers(subparsers) -> None:
    """Add the four commands."""
    parser = subparsers.add_parser("build", help="build an artifact from a checkpoint: convert, configure, compile")
    _add_source(parser)
    _add_target(parser)
    parser.add_argument("--artifact-path", type=Path, default=Path("dist"), help="folder of artifacts (dist)")
    parser.add_argument("--use-cache", type=int, choices=(0, 1), default=1, help="0 converts again what is there")
    parser.add_argument("--reuse-lib", type=Path, help="take this library of a model of the same shape")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--convert-weights-only", "--convert-weight-only", action="store_true")
    only.add_argument("--build-model-only", action="store_true", help="compile for an artifact that is there")
    parser.set_defaults(run=run_build)

    parser = subparsers.add_parser("convert-weight", help="write an artifact without a library")
    _add_source(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="artifact folder to write")
    parser.set_defaults(run=run_convert_weight)

    parser = subparsers.add_parser("gen-config", help="write tokenizer files and mlc-chat-config.json")
    _add_source(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="artifact folder to write into")
    parser.set_defaults(run=run_gen_config)

    parser = subparsers.add_parser("compile", help="add a library for a target to an artifact")
    parser.add_argument("artifact", type=Path, help="artifact folder")
    _add_target(parser)
    parser.set_defaults(run=run_compile)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint file or folder, a name below <artifact-path>/models, or a preset")
    parser.add_argument("--hf-path", help="hub repository, owner/name")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--quantization", default="q4f16_1", help="scheme (q4f16_1)")
    parser.add_argument("--random-weights", action="store_true", help="draw weights for a preset of configs/models")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--tokenizer", type=Path, help="vocabulary file or folder, where none lies beside the checkpoint")
    parser.add_argument("--template", help="prompt template of configs/templates")
    parser.add_argument("--head-size-divisor", type=int, help="of generation 5's group norm, where not 8")
    parser.add_argument("--max-seq-len", type=int, default=-1, help="context length to note, where not the model's")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="auto", help='auto, llvm, "llvm -mcpu=..." or a TVM target as JSON')
    parser.add_argument("--mcpu", help="CPU to compile for, LLVM's name (this machine's)")
    parser.add_argument("--debug-dump", action="store_true", help="write the module after every phase to debug/")
    parser.add_argument("--system-lib", action="store_true", help="object files to link into a program, as .tar")


def run_build(args: argparse.Namespace) -> int:
    from .. import build
    from ..artifact import artifact_name, staging
    from ..compiler.targets import resolve_target
    from ..quantization.schemes import get_scheme

    scheme = get_scheme(args.quantization)
    target = resolve_target(args.target, args.mcpu)
    source = _open_source(args)
    name = artifact_name(source.checkpoint.name, scheme.name)
    final = args.artifact_path / name

    def add_library(folder: Path) -> None:
        if args.reuse_lib:
            print(f"Reuse existing prebuilt lib {args.reuse_lib}...")
            library = build.reuse_library(args.reuse_lib, source.config, scheme, folder)
        else:
            print(f"Target configured: {target.tvm}")
            library = _compile(args, source.config, scheme, folder, final)
        print(f"Finish exporting to {final / library.path.name}")

    if args.build_model_only or args.use_cache and build.matching_parameters(final, source, scheme):
        print(f"Reuse parameters in {final / 'params'}. You can use --use-cache=0 to convert them again")
        if not args.convert_weights_only:
            add_library(final)
        return 0
    with staging(final) as folder:
        _convert(source, scheme, name, folder, final)
        if not args.convert_weights_only:
            add_library(folder)
    print(f"Finish building {final}")
    return 0


def run_convert_weight(args: argparse.Namespace) -> int:
    from ..artifact import staging
    from ..quantization.schemes import get_scheme

    scheme = get_scheme(args.quantization)
    source = _open_source(args)
    with staging(args.output) as folder:
        _convert(source, scheme, args.output.resolve().name, folder, args.output)
    return 0


def run_gen_config(args: argparse.Namespace) -> int:
    from .. import build
    from ..artifact import PARAMS
    from ..quantization.schemes import get_scheme

    scheme = get_scheme(args.quantization)
    source = _open_source(args)
    path = build.write_config(source, scheme, args.output.resolve().name, args.output / PARAMS)
    print(f"Finish exporting chat config to {path}")
    return 0


def run_compile(args: argparse.Namespace) -> int:
    from .. import build

    config, scheme = build.artifact_config(args.artifact)
    library = _compile(args, config, scheme, args.artifact, args.artifact)
    print(f"Finish exporting to {library.path}")
    return 0


def _open_source(args: argparse.Namespace):
    from .. import build
    from ..errors import UserError

    if args.model and args.hf_path and Path(args.hf_path).name != args.model:
        raise UserError(f"--model {args.model} and --hf-path {args.hf_path} name different models; give one of them.")
    if not args.model and not args.hf_path:
        raise UserError("Give a checkpoint with --model PATH, or a hub repository with --hf-path owner/name.")
    if args.head_size_divisor is not None and args.head_size_divisor < 1:
        raise UserError(f"--head-size-divisor must be at least 1, not {args.head_size_divisor}.")
    model = args.hf_path or args.model
    checkpoint = build.open_source(
        model,
        models_dir=getattr(args, "artifact_path", Path("dist")) / "models",
        random_seed=args.seed if args.random_weights else None,
        head_size_divisor=args.head_size_divisor,
        context_length=args.max_seq_len if args.max_seq_len > 0 else None,
        revision=args.revision,
    )
    source = build.Source.of(checkpoint, args.tokenizer, args.template)
    shape = f"RWKV-{source.config.generation}, {source.config.num_hidden_layers} layers of {source.config.hidden_size}"
    print(f'Using path "{checkpoint.source}" for model "{checkpoint.name}": {shape}')
    return source


def _convert(source, scheme, name: str, folder: Path, final: Path) -> None:
    from .. import build
    from ..artifact import CHAT_CONFIG, PARAMS
    from ..artifact.names import TENSOR_INDEX

    print("Start computing and quantizing weights... This may take a while.")
    print(f"Start storing to cache {final / PARAMS}")
    with _progress() as report:
        conversion = build.convert(source, scheme, name, folder, report)
    print("Finish computing and quantizing weights.")
    print(f"Total param size: {conversion.nbytes / 1e9:.3f} GB, {8 * conversion.nbytes / conversion.parameters:.2f} bits each")
    index = final / PARAMS / TENSOR_INDEX
    print(f"All finished, {conversion.shards} total shards committed, record saved to {index}")
    print(f"Finish exporting chat config to {final / PARAMS / CHAT_CONFIG}")


def _compile(args: argparse.Namespace, config, scheme, folder: Path, final: Path):
    from .. import build

    dump_dir = final / "debug" if args.debug_dump else None
    with _status("Compiling"):
        return build.compile_library(
            config, scheme, args.target, folder, mcpu=args.mcpu, dump_dir=dump_dir, system_lib=args.system_lib
        )


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str, int], None]]:
    """A bar over the stored tensors; the function moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("saving {task.description}"))
    with Progress(*columns) as bar:
        task = bar.add_task("")

        def report(i: int, n: int, name: str, nbytes: int) -> None:
            bar.update(task, completed=i, total=n, description=name)

        yield report


def _status(text: str):
    from rich.console import Console

    return Console(stderr=True).status(f"{text}...")
