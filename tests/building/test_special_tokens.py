"""Special tokens of a Hugging Face folder, from its files to the end of an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from rwkv_mlc import BuildOptions, Engine, UserError, build
from rwkv_mlc.artifact import CHAT_CONFIG, PARAMS
from rwkv_mlc.building import gen_config
from rwkv_mlc.building.source import with_stop_tokens
from rwkv_mlc.engine.templates import load_template
from rwkv_mlc.special_tokens import SpecialTokens
from support.build_inputs import huggingface_name, write_json
from support.synthetic import synthetic_checkpoint

START, END = "<|im_start|>", "<|im_end|>"
RECITED = ["a", "b", "c", END, "d", "e"]  # a token and the one that always follows it
OPTIONS = BuildOptions(template="plain")


def write_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Single bytes behind ``<|endoftext|>``, then the two marks of a chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet, 1)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    state = json.loads(bpe.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["model"]["vocab"]["<|endoftext|>"] = 0
    state["added_tokens"] = [{"id": 0, "content": "<|endoftext|>", **flags}]
    bpe = tokenizers.Tokenizer.from_str(json.dumps(state))
    bpe.add_special_tokens([START, END])
    bpe.save(str(path))
    return bpe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An RWKV-4 that says what it last read's successor in ``RECITED``; no file names an end of text."""
    folder = tmp_path_factory.mktemp("given") / "chatty"
    folder.mkdir()
    library = write_tokenizer(folder / "tokenizer.json")
    size, channels = library.get_vocab_size(), 64
    tensors = synthetic_checkpoint("4", vocab_size=size, hidden_size=channels, layers=1)
    directions = np.random.default_rng(0).choice([-1, 1], (size, channels)).astype(np.float32)
    tensors["emb.weight"], tensors["head.weight"] = directions, np.zeros_like(directions)
    ids = [library.token_to_id(token) for token in RECITED]
    for token, following in zip(ids, [*ids[1:], ids[-1]]):
        tensors["head.weight"][following] += directions[token]
    for name in ("blocks.0.ln0", "ln_out"):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(channels, "f4"), np.zeros(channels, "f4")
    for name in ("blocks.0.att.output.weight", "blocks.0.ffn.value.weight"):
        tensors[name] = np.zeros_like(tensors[name])
    save_file({huggingface_name(name): array for name, array in tensors.items()}, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "rwkv"})
    return folder


@pytest.fixture(scope="module")
def built(folder) -> Path:
    return build(folder, "llvm", "q0f32", folder.parent / "dist", OPTIONS).path


@pytest.fixture
def configured(folder, built, tmp_path):
    """An artifact of the folder with the given contents of its files, and its chat configuration."""

    def configure(named: str = "", **files: dict) -> tuple[Engine, dict]:
        source = Path(shutil.copytree(folder, tmp_path / "chatty"))
        for name, content in files.items():
            write_json(source / f"{name}.json", content)
        artifact = Path(shutil.copytree(built, tmp_path / built.name))
        gen_config(source / named, artifact, "q0f32", OPTIONS)
        return Engine(artifact), json.loads((artifact / PARAMS / CHAT_CONFIG).read_text(encoding="utf-8"))

    return configure


def test_marks_in_a_prompt_are_one_token_each(built, folder):
    engine, library = Engine(built), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = f"{START}user\na{END}\n{START}"
    assert engine.encode(text) == library.encode(text).ids
    assert len(engine.encode(START)) == len(engine.encode(END)) == 1
    assert engine.valid_ids.all()


def test_a_mark_that_ends_nothing_is_generated_and_shown(built):
    answer = Engine(built).generate("a", temperature=0, max_tokens=4)
    assert (answer.text, answer.finish_reason) == (f"bc{END}d", "length")


CONFIGS = {
    "an id": {"config": {"eos_token_id": 258}},
    "a list": {"config": {"eos_token_id": [0, 258]}},
    "generation_config.json": {"config": {"eos_token_id": 0}, "generation_config": {"eos_token_id": [258, 0]}},
    "only there": {"generation_config": {"eos_token_id": 258}},
    "the tokenizer's": {"tokenizer_config": {"eos_token": END}},
    "the map of special tokens": {"special_tokens_map": {"eos_token": END}},
    "the tokenizer's, with rules": {"tokenizer_config": {"eos_token": {"content": END, "special": True}}},
}


@pytest.mark.parametrize("named", ["", "model.safetensors"], ids=["folder", "file"])
@pytest.mark.parametrize("files", CONFIGS.values(), ids=CONFIGS)
def test_the_folders_end_ends_an_answer(configured, files, named):
    engine, config = configured(named, **files)
    answer = engine.generate("a", temperature=0, max_tokens=9)
    assert (answer.text, answer.finish_reason, answer.tokens[-1]) == ("bc", "stop", engine.encode(END)[0])
    assert engine.encode(END) == [258]
    stated = config["eos_token_id"]
    assert 258 in (stated if isinstance(stated, list) else [stated])
    assert 258 in config["conv_template"]["stop_token_ids"] and 258 in config["conv_config"]["stop_tokens"]


def test_stop_token_ids_of_the_chat_config(built, tmp_path):
    artifact = Path(shutil.copytree(built, tmp_path / built.name))
    path = artifact / PARAMS / CHAT_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["conv_template"]["stop_token_ids"] = [0, 258]
    write_json(path, config)
    assert Engine(artifact).generate("a", temperature=0, max_tokens=9).text == "bc"
    config["conv_template"]["stop_token_ids"] = [0, 259]
    write_json(path, config)
    with pytest.raises(UserError, match="ends answers with token 259, but the model has 259 tokens"):
        Engine(artifact)


def test_an_empty_prompt_is_the_token_that_begins_a_text(configured):
    engine, config = configured(config={"bos_token_id": 257, "pad_token_id": 256})
    assert engine.encode("") == [257] and (config["bos_token_id"], config["pad_token_id"]) == (257, 256)


def test_templates_do_not_end_an_answer_at_an_id_0_that_is_a_token_like_any():
    class OfGPT2:
        end_ids = frozenset()

    template = load_template("rwkv_world")
    assert with_stop_tokens(template, OfGPT2(), SpecialTokens(end=(5, 6))).stop_token_ids == (5, 6)
    OfGPT2.end_ids = frozenset({0})
    assert with_stop_tokens(template, OfGPT2(), SpecialTokens(end=(5,))).stop_token_ids == (0, 5)


def test_an_end_that_the_model_has_no_row_for_is_refused(configured):
    with pytest.raises(UserError, match="says that token 259 ends a text, but the model has 259 tokens"):
        configured(config={"eos_token_id": 259})
