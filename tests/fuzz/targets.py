"""What is attacked: each a seed, how it is changed, and what reads it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from . import mutations, seeds
from .fence import Fence

Change = Callable[[bytes, random.Random], bytes]


@dataclass
class Place:
    """The folder of seeds, one to write into, and the fence around that."""

    seeds: Path
    scratch: Path
    fence: Fence

    def seed(self, name: str) -> bytes:
        return (self.seeds / name).read_bytes()

    def write(self, name: str, data: bytes) -> Path:
        path = self.scratch / name
        path.write_bytes(data)
        return path


def model(path: Path) -> None:
    from rwkv_mlc.models import resolve
    from rwkv_mlc.weights import open_checkpoint
    from rwkv_mlc.weights.parameters import read_parameter

    _, parameters, tensors = resolve(open_checkpoint(str(path)))
    for parameter in parameters:
        read_parameter(parameter, tensors[parameter.source])


def pth(place: Place, draw: random.Random) -> None:
    if draw.random() < 0.3:
        data = mutations.bytes_of(place.seed("model.pth"), draw)
    else:
        from support.synthetic import synthetic_checkpoint

        changed = mutations.bytes_of(place.seed("model.pkl"), draw)
        if draw.random() < 0.3:
            at = draw.randrange(2, len(changed)) if len(changed) > 2 else 0
            nested = draw.choice(
                [b")" + b"\x85" * 200_000, b"]" + b"\x85" * 999, b"(lp0\n", b"}(", b"r\xff\xff\xff\x7f"]
            )
            changed = changed[:at] + nested + changed[at:]
        data = seeds.pth(changed, synthetic_checkpoint("5.2", **seeds.SHAPE))
    model(place.write("x.pth", data))


def safetensors(place: Place, draw: random.Random) -> None:
    data = place.seed("model.safetensors")
    if draw.random() < 0.4:
        data = mutations.bytes_of(data, draw)
    else:
        (size,) = struct.unpack_from("<Q", data)
        header = mutations.json_of(data[8 : 8 + size].rstrip(), draw)
        data = struct.pack("<Q", len(header)) + header + data[8 + size :]
    model(place.write("x.safetensors", data))


def rwkv_cpp(place: Place, draw: random.Random) -> None:
    seed = draw.choice(["model.bin", "quantized.bin"])
    model(place.write("x.bin", mutations.bytes_of(place.seed(seed), draw)))


def gguf(place: Place, draw: random.Random) -> None:
    """Changes are mostly in the header, before the numbers."""
    from rwkv_mlc.weights.gguf import read_gguf

    data = place.seed("model.gguf")
    cut = draw.choice([len(data), 16_000])
    changed = mutations.bytes_of(data[:cut], draw) + data[cut:]
    for tensor in read_gguf(place.write("x.gguf", changed)).tensors.values():
        if tensor.read().shape != tensor.shape:
            raise AssertionError(f"{tensor.shape} was read as another shape")


def mlc_llm(place: Place, draw: random.Random) -> None:
    """A folder that mlc_llm converted, in which a file was changed."""
    from rwkv_mlc.tokenizer import load_tokenizer

    changes: dict[str, Change] = {
        "tensor-cache.json": mutations.json_of,
        "mlc-chat-config.json": mutations.json_of,
        "params_shard_0.bin": mutations.bytes_of,
        "tokenizer_model": mutations.bytes_of,
    }
    changed = draw.choice(list(changes))
    folder = place.scratch / "mlc"
    folder.mkdir(exist_ok=True)
    for name, change in changes.items():
        data = place.seed(f"mlc/{name}")
        place.write(f"mlc/{name}", change(data, draw) if name == changed else data)
    if changed == "tokenizer_model":
        load_tokenizer(folder / changed)
    else:
        model(folder)


def adapter(place: Place, draw: random.Random) -> None:
    """A LoRA of PEFT's or RWKV-LM's, or a file of state tuning, in which something was changed."""
    from rwkv_mlc.models import resolve
    from rwkv_mlc.weights import open_checkpoint
    from rwkv_mlc.weights.lora import merged
    from rwkv_mlc.weights.parameters import read_parameter
    from rwkv_mlc.weights.tuned_state import read_tuned_state

    changes: dict[str, Change] = {
        "tuned.safetensors": mutations.bytes_of,
        "peft/adapter_model.safetensors": mutations.bytes_of,
        "peft/adapter_config.json": mutations.json_of,
        "lora.pkl": mutations.bytes_of,
    }
    checkpoint, chosen = open_checkpoint(str(place.seeds / "model.pth")), draw.choice(list(changes))
    (place.scratch / "peft").mkdir(exist_ok=True)
    for name, change in changes.items():
        data = place.seed(name)
        place.write(name, change(data, draw) if name == chosen else data)
    if chosen == "tuned.safetensors":
        read_tuned_state(place.scratch / chosen, resolve(checkpoint)[0])
        return
    if chosen == "lora.pkl":
        lora = place.write("lora.pth", seeds.pth(place.scratch.joinpath(chosen).read_bytes(), seeds.LORA))
        _, parameters, tensors = resolve(merged(checkpoint, lora, 4.0))
    else:
        _, parameters, tensors = resolve(merged(checkpoint, place.scratch / "peft"))
    for parameter in parameters:
        read_parameter(parameter, tensors[parameter.source])


def folder(place: Place, draw: random.Random) -> None:
    """A Hugging Face folder whose configuration, index or vocabulary was changed."""
    from rwkv_mlc.models import resolve
    from rwkv_mlc.tokenizer import find_vocabulary, load_tokenizer
    from rwkv_mlc.weights import open_checkpoint

    target = place.scratch / "folder"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copyfile(place.seeds / "model.safetensors", target / "model.safetensors")
    names = {
        "config.json": "config.json",
        "index.json": "model.safetensors.index.json",
        "generation_config.json": "generation_config.json",
        "tokenizer_config.json": "tokenizer_config.json",
        "special_tokens_map.json": "special_tokens_map.json",
        "tokenizer.json": "tokenizer.json",
    }
    chosen = draw.choice(list(names))
    for seed, name in names.items():
        data = place.seed(seed)
        (target / name).write_bytes(mutations.json_of(data, draw) if seed == chosen else data)
    model(target)
    checkpoint = open_checkpoint(str(target))
    load_tokenizer(find_vocabulary(checkpoint, resolve(checkpoint)[0]))


def vocabulary(name: str, change: Change, place: Place, draw: random.Random) -> None:
    from rwkv_mlc.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(place.write(name, change(place.seed(name), draw)))
    tokenizer.valid_ids(draw.choice([40, 65536]))
    for text in ("abc \n\n", b"\xff\x00\xf0\x9f", "é<|endoftext|>", "\udc80"):
        tokenizer.decode(tokenizer.encode(text))


def artifact(name: str, place: Place, draw: random.Random) -> None:
    """An artifact with one changed file, as ``inspect`` and the start of ``chat`` look at it."""
    from rwkv_mlc.artifact import Artifact
    from rwkv_mlc.engine.compatibility import check_library
    from rwkv_mlc.engine.sampler import SamplingParams
    from rwkv_mlc.engine.templates import Template
    from rwkv_mlc.inspection import artifact_summary
    from rwkv_mlc.tokenizer import load_tokenizer

    target, seed = place.scratch / "artifact", place.seeds / "artifact"
    if not target.exists():
        shutil.copytree(seed, target)
    data = place.seed(f"artifact/{name}")
    (target / name).write_bytes(mutations.json_of(data, draw))
    try:
        opened = Artifact.open(target)
        for slot, library in opened.libraries().items():
            check_library(library, slot)
        load_tokenizer(opened.tokenizer_files).valid_ids(opened.config.vocab_size)
        settings = opened.chat_config
        SamplingParams(**settings.sampling)
        template = Template.of(settings.conv_template)
        template.system_prompt(), template.user_turn("hi"), template.after_answer(b"yes\n")
        artifact_summary(opened)
    finally:
        (target / name).write_bytes(data)


def metadata(place: Place, draw: random.Random) -> None:
    from rwkv_mlc.engine.older_libraries import described
    from rwkv_mlc.inspection import chat_memory
    from rwkv_mlc.schema import LibraryMetadata

    read = described(LibraryMetadata.read(mutations.json_of(place.seed("metadata.json"), draw)))
    chat_memory(read, 512)


def library(name: str, place: Place, draw: random.Random) -> None:
    """What looks at a library without loading it."""
    from rwkv_mlc.engine.compatibility import _check_elf, read_metadata
    from rwkv_mlc.errors import UserError
    from rwkv_mlc.machine.cpu_features import host_architecture
    from rwkv_mlc.verification import verify

    path = place.write(name, mutations.bytes_of(place.seed(name), draw))
    for look in (partial(_check_elf, architecture=host_architecture()), read_metadata):
        with contextlib.suppress(UserError):
            look(path)
    verify(path)


def modules(place: Place, draw: random.Random) -> None:
    from rwkv_mlc.errors import UserError
    from rwkv_mlc.library_format import KernelModule, read_modules
    from rwkv_mlc.verification.fatbin import read_fatbin, read_resources

    data = mutations.bytes_of(place.seed("modules.bin"), draw)
    for read in (read_modules, KernelModule.parse, read_fatbin, read_resources):
        try:
            read(data)
        except ValueError as error:  # what they raise; those who call them make sentences of it
            assert str(error) or UserError


def state(place: Place, draw: random.Random) -> None:
    from rwkv_mlc.artifact import Artifact
    from rwkv_mlc.engine.state_file import load_state

    data = place.seed("a.state")
    if draw.random() < 0.5:
        data = mutations.bytes_of(data, draw)
    else:
        (size,) = struct.unpack_from("<Q", data)
        header = mutations.json_of(data[8 : 8 + size].rstrip(), draw)
        data = struct.pack("<Q", len(header)) + header + data[8 + size :]
    path = place.write("x.state", data)
    opened = Artifact.open(place.seeds / "artifact")
    load_state(path, opened, {"blocks.0.x": (1, 4), "blocks.0.y": (1, 2, 3)}, 5)


def dump(place: Place, draw: random.Random) -> None:
    from rwkv_mlc.debug.compare import compare
    from rwkv_mlc.debug.dump import Dump
    from rwkv_mlc.debug.report import html

    target = place.scratch / "dump"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(place.seeds / "dump", target)
    name, change = draw.choice([("dump.json", mutations.json_of)] * 3 + [("tensors.safetensors", mutations.bytes_of)])
    (target / name).write_bytes(change(place.seed(f"dump/{name}"), draw))
    with np.errstate(all="ignore"):
        html(compare(Dump.read(target), Dump.read(place.seeds / "dump")))


def template(place: Place, draw: random.Random) -> None:
    from rwkv_mlc.engine.templates import Template, load_template
    from rwkv_mlc.engine.thoughts import ThoughtStream
    from rwkv_mlc.engine.tools import calls_in
    from rwkv_mlc.typed_json import parse

    config = json.loads(place.seed("artifact/params/mlc-chat-config.json"))
    thinks = load_template("rwkv_g1").to_dict()
    data = json.dumps(
        mutations.value_of(config["conv_template"] | {key: thinks[key] for key in ("think", "tool_use")}, draw)
    )
    changed = parse(Template, data, "The template", "correct it")
    changed.system_prompt(), changed.user_turn("a\r\n\n b"), changed.after_answer(b"yes\n"), changed.told("yes\n")
    if changed.think:
        turn = changed.user_turn("a", changed.think_mode(None))
        stream = ThoughtStream(changed.think, turn[-9:])
        stream.push("x</think>y"), stream.finish()
    if changed.tool_use:
        changed.system_prompt([{"name": "f"}]), calls_in("```json{}```", changed.tool_use)


def tools(place: Place, draw: random.Random) -> None:
    from rwkv_mlc.engine.tools import read_tools, tool_name

    offered = [{"name": "f", "parameters": {"town": "string"}}, {"type": "function", "function": {"name": "g"}}]
    path = place.scratch / "tools.json"
    path.write_bytes(mutations.json_of(json.dumps(offered).encode(), draw))
    for tool in read_tools(path):
        tool_name(tool)


def target(place: Place, draw: random.Random) -> None:
    from rwkv_mlc.compiler.targets import TARGETS, resolve_target

    name = draw.choice([*TARGETS, "auto"])
    if draw.random() < 0.5:
        data = {
            "kind": name,
            "mcpu": "generic",
            "mtriple": "aarch64-linux-gnu",
            "mattr": ["+neon"],
            "max_num_threads": 256,
        }
        text = json.dumps(mutations.value_of(data, draw))
    else:
        words = [name, "-mcpu=generic", "-mattr=+neon,-avx", "-opt-level=3", "-max_num_threads=256", "-arch=sm_80"]
        text = " ".join(mutations.words_of(words[: draw.randint(1, 6)], draw))
    resolve_target(text, draw.choice([None, None, draw.choice(mutations.STRINGS)]))


COMMANDS = [
    "build --model MODEL --target llvm --quantization q4f16_1 --artifact-path OUT --artifact-name x --overwrite",
    "build --model rwkv-4-world-0.1b --random-weights --rescale-every 2 --fp32-layers 0 --fp32 ffn.key --artifact-path OUT",
    "build --model MODEL --reuse-lib LIBRARY --tokenizer VOCAB --template rwkv_world --artifact-path OUT",
    "build --model MODEL --lora MODEL --lora-alpha 8 --state MODEL --target llvm --artifact-path OUT",
    "convert-weight --model MODEL --quantization q0f32 -o OUT --head-size-divisor 4",
    "gen-config --model FOLDER --tokenizer VOCAB -o OUT",
    "compile DIST --target vulkan --debug-dump --system-lib",
    "chat DIST --device cpu --temperature 0.5 --top-k 3 --stop x --system hello --state STATE",
    "chat --model DIST --model-lib-path LIBRARY --device cpu --evaluate --eval-prompt-len 8 --eval-gen-len 2",
    "generate DIST --prompt hi --max-tokens 1 --seed 3 --state STATE --save-state OUT --json --stats",
    "generate DIST --prompt-file VOCAB --chat --top-p 0.5 --presence-penalty 1",
    "logits DIST --tokens 1,2,3 --out OUT --decode",
    "inspect DIST --json --errors MODEL",
    "convert-hf MODEL OUT --dtype bf16 --max-shard-size 1MB --tokenizer VOCAB --template rwkv_world --overwrite",
    "convert-hf FOLDER OUT --dtype fp16 --max-shard-size 20KB",
    "convert-pth FOLDER OUT --overwrite",
    "convert-rwkv-cpp MODEL OUT --dtype FP32 --overwrite",
    "inspect MODEL --quantization all --head-size-divisor 8",
    "bench DIST --prefill 4,8 --decode 2 --batch 2 --threads 1 --json OUT --breakdown",
    "verify DIST --json",
    "verify LIBRARY",
    "dump MODEL --reference --dtype float32 --tokens 1,2 --decode 1 --chunk 2 --out OUT",
    "dump DIST --prompt hi --out OUT",
    "compare DUMP DUMP --rtol 0.1 --html OUT --json --all",
    "debug DIST --against MODEL --tokens 1 --out OUT --html OUT",
]


def command(place: Place, draw: random.Random) -> None:
    """Arguments of a command; nothing is compiled and no library loaded."""
    from rwkv_mlc.building import staged
    from rwkv_mlc.cli.main import main
    from rwkv_mlc.engine.runner import Runner
    from rwkv_mlc.errors import UserError

    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError("Nothing is run here.")

    place_of = {"DIST": "artifact", "MODEL": "model.safetensors", "FOLDER": "", "VOCAB": "vocab.txt", "DUMP": "dump"}
    place_of |= {"STATE": "a.state", "LIBRARY": "library.so"}
    words = draw.choice(COMMANDS).split()
    name, words = words[0], mutations.words_of(words[1:], draw)
    paths = {word: str(place.seeds / file) for word, file in place_of.items()} | {"OUT": str(place.scratch / "out")}
    shutil.rmtree(place.scratch / "out", ignore_errors=True)
    if name == "compile":  # which writes into what it is given
        shutil.rmtree(place.scratch / "compiled", ignore_errors=True)
        paths["DIST"] = str(shutil.copytree(place.seeds / "artifact", place.scratch / "compiled"))
    arguments = [name, *(paths.get(word, word) for word in words)]
    before = Path.cwd()
    os.chdir(place.scratch)
    place.fence.tell(arguments)
    try:
        with quiet(), patch.object(Runner, "__init__", refuse), patch.object(staged, "compile_library", refuse):
            assert main(arguments) in (0, 1, 2, 130)
    except SystemExit as end:
        assert end.code in (0, 2)
    finally:
        os.chdir(before)


def chat(place: Place, draw: random.Random) -> None:
    """Commands within a chat, on a real engine."""
    from rwkv_mlc.cli.chat import COMMANDS as CHAT_COMMANDS

    session = _session(place)
    argument = draw.choice(
        [*mutations.STRINGS, *map(str, mutations.NUMBERS), "~nosuchuser/x", "x/" * 2500, "temperature=0"]
    )
    argument = draw.choice(["", "temperature=", "stop=", "seed=none;", "max_tokens=", str(place.scratch)]) + argument
    line = f"/{draw.choice([*CHAT_COMMANDS, 'nothing'])} {argument}"
    before = Path.cwd()
    os.chdir(place.scratch)
    place.fence.tell([argument])
    try:
        with quiet():
            session.handle(line)
    finally:
        os.chdir(before)


_sessions: dict[Path, Any] = {}


def _session(place: Place) -> Any:
    import argparse

    from rwkv_mlc.cli import options
    from rwkv_mlc.cli.chat import Session

    if place.seeds not in _sessions:
        parser = argparse.ArgumentParser()
        options.add_engine(parser)
        options.add_think(parser)
        options.add_sampling(parser)
        parser.set_defaults(system=None, state=None, tools=None)
        with quiet():
            _sessions[place.seeds] = Session(parser.parse_args([str(place.seeds / "artifact"), "--device", "cpu"]))
    return _sessions[place.seeds]


@contextlib.contextmanager
def quiet() -> Any:
    """Takes what is printed away, and gives no input."""

    def stream() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")

    kept = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = stream(), stream(), stream()
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept


CONFIG, RECORD, INDEX = "params/mlc-chat-config.json", "build-record.json", "params/tensor-cache.json"
VERIFIED = "params/.verified.json"

TARGETS: dict[str, Callable[[Place, random.Random], None]] = {
    "pth": pth,
    "safetensors": safetensors,
    "rwkv.cpp": rwkv_cpp,
    "gguf": gguf,
    "mlc_llm": mlc_llm,
    "adapter": adapter,
    "folder": folder,
    "world": partial(vocabulary, "vocab.txt", mutations.lines_of),
    "tokenizer.json": partial(vocabulary, "tokenizer.json", mutations.json_of),
    "chat config": partial(artifact, CONFIG),
    "build record": partial(artifact, RECORD),
    "tensor cache": partial(artifact, INDEX),
    "verified shards": partial(artifact, VERIFIED),
    "metadata": metadata,
    "library": partial(library, "library.so"),
    "objects": partial(library, "library.tar"),
    "modules": modules,
    "state": state,
    "dump": dump,
    "template": template,
    "tools": tools,
    "target": target,
    "chat": chat,
    "command": command,
}
