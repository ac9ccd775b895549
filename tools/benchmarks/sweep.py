"""Build models in several schemes and run ``rwkv-mlc bench`` on each, in a process of its own.

    python tools/benchmarks/sweep.py rwkv-4-world-0.1b rwkv-5-world-1.5b --schemes q4f16_1,q8f16_1 --breakdown

Models are presets, with random weights, or checkpoints. Every result is a file of ``--results``; what is there already
is not measured again, so that a run that was stopped goes on where it was. Further options go to ``rwkv-mlc bench``.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv_mlc.artifact import artifact_name
from rwkv_mlc.data_files import config_names
from rwkv_mlc.errors import UserError
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.weights import open_checkpoint


def measure(source: list[str], scheme: str, artifact: Path, result: Path, options: list[str], remove: bool) -> bool:
    """Build one artifact, time it and write ``result``; False when either step failed, which has then said why."""
    was_there = artifact.exists()
    build = ["build.py", *source, "--quantization", scheme, "--artifact-path", str(artifact.parent)]
    bench = ["-m", "rwkv_mlc", "bench", str(artifact), "--json", str(result), *options]
    done = all(subprocess.run([sys.executable, *command], cwd=ROOT).returncode == 0 for command in (build, bench))
    if remove and not was_there:
        shutil.rmtree(artifact, ignore_errors=True)
    return done


def open_model(model: str) -> tuple[str, list[str]]:
    """The name of its artifacts and what ``build`` wants to know of it. Raises UserError for one that is not there."""
    if model in config_names("models") and not Path(model).exists():
        return model, ["--model", model, "--random-weights"]
    path = Path(model).resolve()
    return open_checkpoint(str(path)).name, ["--model", str(path)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="presets of configs/models, or checkpoints")
    parser.add_argument("--schemes", default="q4f16_1,q8f16_1,q0f16", help="with commas between them")
    parser.add_argument("--artifacts", type=Path, default=ROOT / "dist", help="folder of artifacts (dist)")
    parser.add_argument("--results", type=Path, default=ROOT / "dist" / "benchmarks", help="(dist/benchmarks)")
    parser.add_argument(
        "--remove", action="store_true", help="remove an artifact when it is timed, if it was not there"
    )
    args, options = parser.parse_known_args(arguments)
    schemes = args.schemes.split(",")
    if unknown := [scheme for scheme in schemes if scheme not in SCHEMES]:
        parser.error(f"unknown scheme {', '.join(unknown)}; valid are {', '.join(SCHEMES)}")

    try:
        models = [open_model(model) for model in args.models]
    except UserError as error:
        parser.error(str(error))
    args.results.mkdir(parents=True, exist_ok=True)
    failed = []
    for (model, source), scheme in itertools.product(models, schemes):
        name = artifact_name(model, scheme)
        result = args.results.resolve() / f"{name}.json"
        if result.exists():
            print(f"{name} is measured already, in {result}")
        elif not measure(source, scheme, args.artifacts.resolve() / name, result, options, args.remove):
            failed.append(name)
    if failed:
        print(f"Not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
