"""Folders for transformers: what they compute against the float64 reference, and the way back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from rwkv_mlc import reference
from rwkv_mlc.building.convert import convert_weights
from rwkv_mlc.cli.main import main
from rwkv_mlc.models import GENERATIONS
from rwkv_mlc.models.huggingface import BLOCK, FLA_NAMES, Naming, reading, writing
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.huggingface import rename
from support.build_inputs import write_vocabulary
from support.checkpoint_layouts import write_fla, write_pth
from support.paths import DEMOS
from support.synthetic import synthetic_checkpoint

KNOWN = [name for name, generation in GENERATIONS.items() if generation.hugging_face]
OURS = [name for name in KNOWN if GENERATIONS[name].hugging_face.code]
"""Those whose code the folder brings: transformers' own model keeps no state of several texts and passes no padding over."""

SHAPE = {"hidden_size": 64, "layers": 2, "head_size": 64, "seed": 1}
TOKENS = [int(token) for token in np.random.default_rng(1).integers(1, 96, 24)]
GREEDY = json.loads((Path(__file__).parents[1] / "models" / "demo_greedy.json").read_text(encoding="utf-8"))


def save(folder: Path, tensors: dict[str, np.ndarray], dtype: str = "float32") -> Path:
    folder.mkdir()
    write_vocabulary(folder / "rwkv_vocab.txt")
    return write_pth(folder / "model.pth", tensors, dtype)


def convert(source: Path, *more: str) -> Path:
    out = source.parent / "out"
    assert main(["convert-hf", str(source), str(out), *more]) == 0
    return out


def load(folder: Path):
    """Computing in float32, whatever the weights are stored in."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.fixture(scope="module", params=KNOWN)
def converted(request, tmp_path_factory) -> Path:
    """A checkpoint, and beside it ``out``."""
    source = save(tmp_path_factory.mktemp("hf") / "model", synthetic_checkpoint(request.param, **SHAPE))
    convert(source, "--max-shard-size", "200KB")
    return source


@pytest.fixture(scope="module")
def model(converted):
    return load(converted.parent / "out")


def expected(source: Path, tokens: list[int]) -> np.ndarray:
    return reference.forward(*reference.load(open_checkpoint(str(source))), tokens)[0]


def greedy(source: Path) -> list[int]:
    """Six tokens, and five that the reference adds."""
    text = TOKENS[:6]
    for _ in range(5):
        text.append(int(expected(source, text)[-1].argmax()))
    return text


@torch.no_grad()
def test_logits_are_the_references(converted, model, within):
    right, tokens = expected(converted, TOKENS), torch.tensor([TOKENS])
    state, pieces = None, []
    for start, end in ((0, 7), (7, 8), (8, 9), (9, len(TOKENS))):
        outputs = model(tokens[:, start:end], state=state, use_cache=True)
        state = outputs.state
        pieces.append(outputs.logits)
    for what, logits in (("at once", model(tokens).logits), ("in pieces", torch.cat(pieces, 1))):
        within(what, np.abs(logits[0].double().numpy() - right).max() / np.abs(right).max(), 1e-5)


@torch.no_grad()
def test_generate_goes_on_as_the_reference(converted, model):
    text, options = greedy(converted), {"do_sample": False, "eos_token_id": None}
    assert model.generate(torch.tensor([TOKENS[:6]]), max_new_tokens=5, **options)[0].tolist() == text
    assert model.generate(torch.tensor([text[:9]]), max_new_tokens=2, use_cache=False, **options)[0].tolist() == text


@torch.no_grad()
@pytest.mark.parametrize("converted", OURS, indirect=True)
def test_several_texts_are_each_of_them(converted, model):
    text, options = greedy(converted), {"do_sample": False, "eos_token_id": None}
    batch = torch.tensor([[0, 0, *TOKENS[:6]], TOKENS[:8]])
    mask = torch.tensor([[0, 0, *[1] * 6], [1] * 8])
    both = model.generate(batch, attention_mask=mask, max_new_tokens=5, **options)
    assert both[0, 2:].tolist() == text
    assert both[1].tolist() == model.generate(batch[1:], max_new_tokens=5, **options)[0].tolist()
    beams = [model.generate(batch[1:], max_new_tokens=4, num_beams=2, use_cache=c, **options) for c in (True, False)]
    assert torch.equal(*beams)
    state = model(torch.tensor([text[:6]]), use_cache=True).state
    assert model.generate(torch.tensor([text[:8]]), state=state, max_new_tokens=3, **options)[0].tolist() == text


@torch.no_grad()
@pytest.mark.parametrize("converted", OURS, indirect=True)
def test_padding_changes_nothing_wherever_it_stands(converted, model):
    bare = model(torch.tensor([TOKENS[:5]]), use_cache=True)
    mask = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 1, 0]])
    padded = torch.zeros_like(mask)
    padded[mask.bool()] = torch.tensor(TOKENS[:5])
    outputs = model(padded, attention_mask=mask, use_cache=True)
    torch.testing.assert_close(outputs.logits[mask.bool()], bare.logits[0])
    for kept in ("time_mixing", "wkv", "channel_mixing"):
        torch.testing.assert_close(getattr(outputs.state, kept), getattr(bare.state, kept))


def test_shards_are_those_of_the_checkpoint(converted, tmp_path):
    for name, source in (("pth", converted), ("folder", converted.parent / "out")):
        convert_weights(open_checkpoint(str(source)), get_scheme("q4f16_1"), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "pth").iterdir())
    assert [(tmp_path / "folder" / name).read_bytes() for name in files] == [
        (tmp_path / "pth" / name).read_bytes() for name in files
    ]


def test_folder_holds_what_transformers_and_people_look_for(converted):
    folder = converted.parent / "out"
    shards = sorted(folder.glob("*.safetensors"))
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert len(shards) > 2 and {path.name for path in shards} == set(weight_map.values())
    for path in shards:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert {name for name, shard in weight_map.items() if shard == path.name} == set(file.keys())
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118  safe_open gives no iterator
        assert sum(sizes) <= 200_000 or len(sizes) == 1
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] and config["torch_dtype"] == "float32" and config["eos_token_id"] == 0
    for place in config.get("auto_map", {}).values():
        assert (folder / f"{place.partition('.')[0]}.py").is_file()
    assert open_checkpoint(str(converted)).sha256() in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("generation", KNOWN)
def test_there_and_back_bit_for_bit(tmp_path, generation, dtype):
    tensors = synthetic_checkpoint(generation, **SHAPE)
    source = save(tmp_path / "model", tensors, dtype)
    assert main(["convert-pth", str(convert(source)), str(tmp_path / "back.pth")]) == 0
    found, stored = (torch.load(path, weights_only=True) for path in (tmp_path / "back.pth", source))
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def test_types_on_request(tmp_path):
    tensors = synthetic_checkpoint("7", **SHAPE)
    for dtype, name in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        source = save(tmp_path / dtype, tensors)
        with safe_open(convert(source, "--dtype", dtype) / "model.safetensors", "pt") as file:
            key = file.get_tensor("model.layers.1.attn.k_proj.weight")
        assert torch.equal(key, torch.from_numpy(tensors["blocks.1.att.key.weight"]).to(name))


def test_7_is_what_flash_linear_attention_writes(tmp_path):
    """Its names and shapes, and the config keys that its ``RWKV7Config`` takes from it."""
    tensors = synthetic_checkpoint("7", **SHAPE)
    folder = convert(save(tmp_path / "model", tensors))
    with safe_open(write_fla(tmp_path / "fla", tensors, "float32") / "model.safetensors", "np") as theirs:
        with safe_open(folder / "model.safetensors", "np") as ours:
            assert set(ours.keys()) == set(theirs.keys())
            for name in ours.keys():  # noqa: SIM118
                np.testing.assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name), err_msg=name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ranks = [config[f"{name}_low_rank_dim"] for name in ("decay", "a", "v", "gate")]
    assert ranks == [12, 10, 14, 20] and (config["head_dim"], config["num_heads"]) == (64, 1)


@pytest.mark.parametrize("options", [{"head_size": 32}, {"attention_size": 128}], ids=["heads of 32", "wide"])
def test_7_of_other_sizes(tmp_path, options, capfd, within):
    source = save(tmp_path / "model", synthetic_checkpoint("7", **SHAPE | options))
    if "head_size" in options:
        assert main(["convert-hf", str(source), str(tmp_path / "out")]) == 2
        assert "head_dim times 1e-5 for the norm of heads, 0.00032; this model has 0.00064" in capfd.readouterr().err
        return
    model, right = load(convert(source)), expected(source, TOKENS)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].double().numpy()
    within("wide", np.abs(logits - right).max() / np.abs(right).max(), 1e-5)


@pytest.mark.parametrize("name", ["rwkv-7-village", "rwkv-5-village", "rwkv-4-village"])
def test_demo_models_say_what_ours_say(tmp_path, name):
    assert main(["convert-hf", str(DEMOS / name), str(tmp_path / "out")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    model = load(tmp_path / "out")
    for prompt, answer in GREEDY[name].items():
        tokens = torch.tensor([[0, *tokenizer(prompt).input_ids]])
        mask = torch.ones_like(tokens)  # or else the first token would be taken for padding
        found = model.generate(tokens, attention_mask=mask, max_new_tokens=64, do_sample=False, eos_token_id=None)
        assert tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True) == answer


@pytest.mark.parametrize("generation", KNOWN)
def test_names_there_are_names_here(generation):
    """One table: what is written is read as what it was."""
    known, names = GENERATIONS[generation], synthetic_checkpoint(generation, **SHAPE)
    for name in names:
        stored = f"{name}.weight" if name.endswith(known.hugging_face.transposed) else name
        written = known.hugging_face.name_of(name)
        assert rename(written, known.hugging_face_names) == stored and (written != stored or "head" in name)


def test_a_name_is_taken_by_whole_parts():
    names = (Naming("", "norm", "ln_out"), Naming(BLOCK, "attn", "att"))
    assert rename("blocks.0.attn_norm.weight", reading(names)) == "blocks.0.attn_norm.weight"
    assert rename("norm.weight", reading(names)) == "ln_out.weight"
    assert rename("blocks.12.att.key", writing(names)) == "blocks.12.attn.key"
    assert len({naming.ours + naming.where for naming in FLA_NAMES}) == len(FLA_NAMES)


def test_refusals(tmp_path, capfd):
    source = save(tmp_path / "model", synthetic_checkpoint("7a", **SHAPE))

    def refused(*arguments: str) -> str:
        assert main(list(map(str, arguments))) == 2
        (line,) = capfd.readouterr().err.strip().splitlines()[-1:]
        return line

    assert "There is no layout of Hugging Face's for RWKV-7a" in refused("convert-hf", source, tmp_path / "out")
    narrow = save(tmp_path / "4", synthetic_checkpoint("4", **SHAPE, attention_size=128))
    assert "states of hidden_size channels, 64" in refused("convert-hf", narrow, tmp_path / "out")
    tensors = synthetic_checkpoint("4", **SHAPE)
    tensors["head.weight"][0, 0] = 1e6
    wide = save(tmp_path / "wide", tensors)
    assert "head.weight holds 1e+06, which float16 does not" in refused(
        "convert-hf", wide, tmp_path / "out", "--dtype", "fp16"
    )
    tensors["head.weight"][0, 0] = np.nan
    broken = save(tmp_path / "broken", tensors)
    for command in ("convert-hf", "convert-pth", "convert-rwkv-cpp"):
        assert "head.weight holds NaN" in refused(command, broken, tmp_path / "out")
    assert "such as 2GB" in refused("convert-hf", wide, tmp_path / "out", "--max-shard-size", "two")
    assert "no file or folder" in refused("convert-pth", tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_what_is_there_stays(tmp_path, capfd):
    source = save(tmp_path / "model", synthetic_checkpoint("4", **SHAPE))
    folder = convert(source)
    before = (folder / "model.safetensors").read_bytes()
    for arguments in (
        ["convert-hf", str(source), str(folder)],
        ["convert-pth", str(source), str(source)],
        ["convert-pth", str(source), str(folder)],
        ["convert-rwkv-cpp", str(source), str(source)],
    ):
        assert main(arguments) == 2
        assert re.search("is there already; name another|is a folder; name a file", capfd.readouterr().err)
    (folder / "note").touch()
    assert main(["convert-hf", str(source), str(folder), "--overwrite"]) == 0
    assert (folder / "model.safetensors").read_bytes() == before and not (folder / "note").exists()
    (folder / "config.json").unlink()
    assert main(["convert-hf", str(source), str(folder), "--overwrite"]) == 2
    assert "holds other files and no model" in capfd.readouterr().err
