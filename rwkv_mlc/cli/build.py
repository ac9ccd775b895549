"""``build`` and its three parts: ``convert-weight``, ``gen-config`` and ``compile``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..escaping import listed
from .arguments import LARGEST, integer, integers, named_path, path_or_name, positive_number
from .faults import say
from .former_flags import FORMER_FLAGS

AUTO = "auto"  # what --model was in mlc_llm where nobody said anything else


def add_parsers(subparsers, build_program: str | None = None) -> None:
    """Add the four commands, of which ``build`` is called ``build_program`` where that is given."""
    parser = subparsers.add_parser(
        "build",
        prog=build_program,
        help="build an artifact from a checkpoint: convert, configure, compile",
        description="Build an artifact from a checkpoint: convert, configure, compile. Where none is named, it is the only one "
        "in <artifact-path>/models, or where there is none the demo model.",
    )
    parser.former_flags = FORMER_FLAGS
    _add_source(parser)
    _add_target(parser)
    parser.add_argument("--artifact-path", type=named_path, default=Path("dist"), help="folder of artifacts (dist)")
    parser.add_argument(
        "--artifact-name", metavar="NAME", help="folder of the artifact in there, where not MODEL-SCHEME"
    )
    parser.add_argument(
        "--use-cache",
        type=integer(0, 1),
        metavar="{0,1}",
        default=1,
        help="0 converts again what is converted already (1)",
    )
    parser.add_argument(
        "--auto-precision",
        action="store_true",
        help="keep in float32 what float16 would not hold, as found by reading a text; takes the model's size in float32 of "
        "memory",
    )
    parser.add_argument(
        "--reuse-lib", type=named_path, help="add this library of a model of the same shape, compile none"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--convert-weights-only", "--convert-weight-only", action="store_true", help="write all but the library"
    )
    only.add_argument("--build-model-only", action="store_true", help="write the library of an artifact that is there")
    parser.set_defaults(run=run_build)

    parser = subparsers.add_parser("convert-weight", help="write an artifact's parameters and build record")
    _add_source(parser)
    parser.add_argument("-o", "--output", type=named_path, required=True, help="artifact folder")
    parser.set_defaults(run=run_convert_weight)

    parser = subparsers.add_parser("gen-config", help="write an artifact's tokenizer files and mlc-chat-config.json")
    _add_source(parser)
    parser.add_argument("-o", "--output", type=named_path, required=True, help="artifact folder")
    parser.set_defaults(run=run_gen_config)

    parser = subparsers.add_parser("compile", help="add the library for a target to an artifact")
    parser.add_argument("artifact", type=named_path, help="artifact folder")
    _add_target(parser)
    parser.set_defaults(run=run_compile)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=path_or_name,
        help="checkpoint file or folder, a name below <artifact-path>/models, or a preset",
    )
    parser.add_argument("--hf-path", help="hub repository, owner/name")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--quantization", default="q4f16_1", help="scheme (q4f16_1)")
    parser.add_argument("--random-weights", action="store_true", help="draw weights for a preset of configs/models")
    parser.add_argument("--seed", type=integer(0, (1 << 64) - 1), default=0, help="of the random weights (0)")
    parser.add_argument(
        "--tokenizer", type=named_path, help="vocabulary file or folder, where not beside the checkpoint"
    )
    parser.add_argument("--template", help="prompt template of configs/templates, where not the model's usual one")
    parser.add_argument(
        "--lora",
        type=named_path,
        metavar="FILE",
        help="LoRA to merge into the weights: RWKV-LM's file, PEFT's file or folder",
    )
    parser.add_argument(
        "--lora-alpha",
        type=positive_number,
        metavar="N",
        help="what it was trained with, where it does not say that itself",
    )
    parser.add_argument(
        "--state",
        type=named_path,
        metavar="FILE",
        help="file of state tuning: the state before the first token of every text",
    )
    parser.add_argument("--head-size-divisor", type=integer(-LARGEST), help="of the heads' group norm, where not 8")
    parser.add_argument(
        "--fp32-layers",
        type=integers("layers"),
        default=[],
        metavar="0,1",
        help="layers without float16, where the target has it",
    )
    parser.add_argument(
        "--fp32", type=_names, default=[], metavar="ffn.key,..", help="values without float16 in every layer"
    )
    parser.add_argument(
        "--rescale-every",
        type=integer(-LARGEST),
        metavar="N",
        help="halve the residual stream after every N-th layer, 0 never, where not as the checkpoint's config.json says",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an artifact that was built from another checkpoint"
    )
    parser.add_argument(
        "--max-seq-len", type=integer(-LARGEST), default=-1, help="context length to note, where not the model's"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    text = (
        "auto (this machine's best device), llvm, cuda, metal, vulkan, opencl, android or android-cpu, also with TVM's "
        'options ("llvm -mcpu=NAME", "cuda -arch=sm_90"), or a TVM target as JSON; an artifact has one library for each'
    )
    parser.add_argument("--target", default="auto", help=text)
    parser.add_argument("--mcpu", help="CPU to compile for, in LLVM's names (this machine's)")
    parser.add_argument(
        "--family",
        metavar="fused|plain",
        default="fused",
        help="how the graph is written: in kernels of ours, or in Relax's operators, which TVM fuses and schedules: slow, to "
        "debug and to port with (fused)",
    )
    parser.add_argument(
        "--abi",
        metavar="native|mlc|both",
        help="whose functions the library has: our engine's, mlc_llm's, or both (both for GPUs, ours for CPUs)",
    )
    parser.add_argument(
        "--prefill-activations",
        metavar="float32|int21|int15|int8",
        help="what prompts are read with: fewer bits are faster and less exact, and bench tells by how much (the fastest that "
        "are as exact as float32)",
    )
    parser.add_argument(
        "--int8-prefill",
        action="store_const",
        const="int8",
        dest="prefill_activations",
        help="what --prefill-activations int8 was called",
    )
    parser.add_argument("--debug-dump", action="store_true", help="write the module after every phase to debug/")
    parser.add_argument("--system-lib", action="store_true", help="object files to link into a program, as .tar")


def run_build(args: argparse.Namespace) -> int:
    from ..building import BuildOptions, build
    from .build_output import Printer

    args.model = None if args.model == AUTO else args.model
    if args.model is None and args.hf_path is None and not args.random_weights:
        args.model = _only_checkpoint(args)
    with Printer(from_hub=bool(args.hf_path)) as printer:
        build(
            _model(args),
            args.target,
            args.quantization,
            args.artifact_path,
            BuildOptions(
                **_source_options(args),
                **_target_options(args),
                auto_precision=args.auto_precision,
                artifact_name=args.artifact_name,
            ),
            only="weights" if args.convert_weights_only else "library" if args.build_model_only else None,
            use_cache=bool(args.use_cache),
            reuse_lib=args.reuse_lib,
            observe=printer,
        )
    return 0


def run_convert_weight(args: argparse.Namespace) -> int:
    from ..building import BuildOptions, convert_weight
    from .build_output import Printer

    with Printer(from_hub=bool(args.hf_path)) as printer:
        convert_weight(_model(args), args.output, args.quantization, BuildOptions(**_source_options(args)), printer)
    return 0


def run_gen_config(args: argparse.Namespace) -> int:
    from ..building import BuildOptions, gen_config
    from .build_output import Printer

    with Printer(from_hub=bool(args.hf_path)) as printer:
        gen_config(_model(args), args.output, args.quantization, BuildOptions(**_source_options(args)), printer)
    return 0


def run_compile(args: argparse.Namespace) -> int:
    from ..building import BuildOptions, compile_artifact
    from .build_output import Printer

    with Printer() as printer:
        compile_artifact(args.artifact, args.target, BuildOptions(**_target_options(args)), printer)
    return 0


def _only_checkpoint(args: argparse.Namespace) -> str:
    """The checkpoint in the folder of checkpoints, or where there is none the demo model, whose template is taken where
    no other is given. Raises UserError where there are several."""
    from ..building.source import checkpoints_in
    from ..building.steps import MODELS
    from ..data_files import DEMO, DEMO_TEMPLATE

    folder = args.artifact_path / MODELS
    found = checkpoints_in(folder)
    if len(found) > 1:
        raise UserError(
            f"{folder} holds several checkpoints: {listed([path.name for path in found])}; name one with --model."
        )
    if found:
        return str(found[0])
    say(f"No --model is given and {folder} holds no checkpoint, so that this builds the demo model {DEMO}")
    args.template = args.template or DEMO_TEMPLATE
    return str(DEMO)


def _model(args: argparse.Namespace) -> str:
    if args.model and args.hf_path and Path(args.hf_path).name != Path(args.model).name:
        raise UserError(f"--model {args.model} and --hf-path {args.hf_path} name different models; give one of them.")
    if not args.model and not args.hf_path:
        raise UserError("Give a checkpoint with --model PATH, or a hub repository with --hf-path owner/name.")
    return args.hf_path or args.model


def _source_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``BuildOptions`` that ``_add_source`` asks for."""
    return {
        "overwrite": args.overwrite,
        "head_size_divisor": args.head_size_divisor,
        "context_length": None if args.max_seq_len == -1 else args.max_seq_len,
        "rescale_every": args.rescale_every,
        "float32_layers": tuple(args.fp32_layers),
        "float32_values": tuple(args.fp32),
        "tokenizer": args.tokenizer,
        "template": args.template,
        "lora": args.lora,
        "lora_alpha": args.lora_alpha,
        "state": args.state,
        "revision": args.revision,
        "random_seed": args.seed if args.random_weights else None,
    }


def _target_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``BuildOptions`` that ``_add_target`` asks for."""
    return {
        "mcpu": args.mcpu,
        "family": args.family,
        "abi": args.abi,
        "prefill_activations": args.prefill_activations,
        "system_lib": args.system_lib,
        "debug_dump": args.debug_dump,
    }


def _names(text: str) -> list[str]:
    return text.split(",")
