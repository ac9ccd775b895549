"""Which weights are read, and with which facts: as transformers would load a folder, as trainers wrap and save a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc import reference
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import GENERATIONS, ModelOptions, generation_of, resolve
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.checkpoint import Checkpoint
from support.build_inputs import huggingface_name, write_index, write_json
from support.compiled import in_memory
from support.synthetic import synthetic_checkpoint

SHAPE = {"vocab_size": 61, "hidden_size": 32, "layers": 2, "head_size": 16}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def weights_of(seed: int = 0, generation: str = "4") -> dict[str, np.ndarray]:
    return synthetic_checkpoint(generation, seed, **SHAPE)


def save(path: Path, weights: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({huggingface_name(name): array for name, array in weights.items()}, path)
    return path


def folder_of(folder: Path, weights: dict[str, np.ndarray], **config) -> Path:
    save(folder / "model.safetensors", weights)
    write_json(folder / "config.json", {"model_type": "rwkv"} | config)
    return folder


def save_shards(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    """Two shards with their index, which is returned."""
    names = sorted(weights)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        save(folder / file, {name: weights[name] for name in names[i::2]})
    write_json(folder / "config.json", {"model_type": "rwkv"})
    weight_map = {huggingface_name(name): files[i % 2] for i, name in enumerate(names)}
    return write_index(folder, {"weight_map": weight_map})


def assert_holds(checkpoint: Checkpoint, weights: dict[str, np.ndarray]) -> None:
    """The checkpoint has exactly these tensors and is a model."""
    assert checkpoint.tensors.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].read(), array, err_msg=name)
    resolve(checkpoint)


def logits(source: Path | str, **options) -> np.ndarray:
    config, parameters = reference.load(open_checkpoint(str(source)), options=ModelOptions(**options))
    return reference.forward(config, parameters, TOKENS)[0]


# Which files


def test_a_whole_file_goes_before_an_index_and_its_old_shards(tmp_path):
    new = weights_of(1)
    save_shards(tmp_path, weights_of(0))
    save(tmp_path / "model.safetensors", new)
    assert_holds(open_checkpoint(str(tmp_path)), new)
    write_index(tmp_path, "nothing of the kind")
    assert_holds(open_checkpoint(str(tmp_path)), new)


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_without_its_shards_gives_way_to_a_whole_file(tmp_path, whole):
    new = weights_of(1)
    save_shards(tmp_path, weights_of(0))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names"
    ):
        open_checkpoint(str(tmp_path))
    save(tmp_path / whole, new)
    assert_holds(open_checkpoint(str(tmp_path)), new)


def test_of_two_formats_transformers_takes_safetensors(tmp_path):
    weights = weights_of()
    save_shards(tmp_path, weights)
    save(tmp_path / "pytorch_model.bin", weights_of(1))
    save(tmp_path / "another.safetensors", weights_of(2))
    assert_holds(open_checkpoint(str(tmp_path)), weights)


def test_a_file_of_another_name_does_not_go_before_the_folders_own(tmp_path):
    weights = weights_of()
    save(tmp_path / "pytorch_model.bin", weights)
    save(tmp_path / "extra.safetensors", weights_of(2))
    write_json(tmp_path / "config.json", {})
    assert_holds(open_checkpoint(str(tmp_path)), weights)


def test_an_index_of_other_files_is_refused(tmp_path):
    index = save_shards(tmp_path, weights_of())
    content = json.loads(index.read_text(encoding="utf-8"))
    content["weight_map"]["rwkv.blocks.9.ln1.weight"] = "model-00001-of-00002.safetensors"
    write_json(index, content)
    with pytest.raises(
        UserError, match="says that model-00001-of-00002.safetensors holds rwkv.blocks.9.ln1.weight, which it"
    ):
        open_checkpoint(str(tmp_path))


def test_of_a_tensor_in_two_shards_the_index_says_which(tmp_path):
    weights = weights_of()
    save_shards(tmp_path, weights)
    first, second = (tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    names = sorted(weights)
    stale = {name: array + 1 for name, array in weights.items() if name in names[::2]}
    save(second, {name: weights[name] for name in names[1::2]} | stale)
    assert_holds(open_checkpoint(str(tmp_path)), weights)
    assert open_checkpoint(str(tmp_path)).files == [first, second]


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_shard_or_an_index_stands_for_all_shards(tmp_path, name):
    weights = weights_of()
    folder = tmp_path / "my-model"
    save_shards(folder, weights)
    checkpoint = open_checkpoint(str(folder / name))
    assert_holds(checkpoint, weights)
    assert checkpoint.name == "my-model"


def test_an_adapter_is_not_passed_over(tmp_path):
    folder = folder_of(tmp_path / "hf", weights_of())
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(UserError, match="holds a PEFT adapter.*merge"):
            open_checkpoint(str(source))


# Names


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.safetensors", "run2"),
        ("pytorch_model.bin", "run2"),
        ("rwkv-final.pth", "rwkv-final"),
        ("RWKV-4-World.st", "RWKV-4-World"),
    ],
)
def test_a_file_that_is_named_for_no_model_takes_the_folders_name(tmp_path, monkeypatch, file, name):
    path = save(tmp_path / "run2" / file, weights_of())
    assert open_checkpoint(str(path)).name == name
    monkeypatch.chdir(path.parent)
    assert open_checkpoint(file).name == name


def test_a_revision_of_a_file_that_is_here_is_refused(tmp_path):
    with pytest.raises(UserError, match="it has no revision main; leave --revision out"):
        open_checkpoint(str(save(tmp_path / "a.pth", weights_of())), revision="main")


# What config.json states


@pytest.mark.parametrize("named", ["folder", "file", "other file", "pth"])
def test_the_epsilon_of_config_json_is_used(tmp_path, named):
    folder = folder_of(tmp_path / "hf", weights_of(), layer_norm_epsilon=0.1)
    file = folder / "model.safetensors"
    source = {
        "folder": folder,
        "file": file,
        "other file": folder / "other.safetensors",
        "pth": folder / "other.pth",
    }[named]
    if named in ("other file", "pth"):
        file.rename(source)
    plain = logits(save(tmp_path / "alone" / "a.safetensors", weights_of()))
    assert np.abs(logits(source) - plain).max() > 1e-2
    assert resolve(open_checkpoint(str(source)))[0].layer_norm_epsilon == 0.1


def test_an_epsilon_of_nothing_is_used(tmp_path):
    folder = folder_of(tmp_path / "hf", weights_of(), layer_norm_epsilon=0)
    assert resolve(open_checkpoint(str(folder)))[0].layer_norm_epsilon == 0


@pytest.mark.parametrize("name", ["layer_norm_eps", "norm_eps"])
def test_the_epsilon_by_its_other_names(tmp_path, name):
    folder = folder_of(tmp_path / "hf", weights_of(), **{name: 0.1})
    assert resolve(open_checkpoint(str(folder)))[0].layer_norm_epsilon == 0.1


def test_the_context_by_its_other_name(tmp_path):
    folder = folder_of(tmp_path / "hf", weights_of(), max_position_embeddings=512, hidden_act="sqrelu")
    assert resolve(open_checkpoint(str(folder)))[0].context_length == 512


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"layer_norm_epsilon": 1e-5, "norm_eps": 1e-3},
            "gives layer_norm_epsilon 1e-05 and norm_eps 0.001, which are one",
        ),
        ({"hidden_act": "gelu"}, "gives hidden_act as 'gelu', expected the square of relu (relu2, "),
        ({"activation_function": "silu"}, "gives activation_function as 'silu', expected the square of relu"),
        ({"quantization_config": {"bits": 4}}, "says that the weights are quantized"),
    ],
)
def test_a_config_of_what_rwkv_does_not_compute_is_refused(tmp_path, config, message):
    folder = folder_of(tmp_path / "hf", weights_of(), **config)
    with pytest.raises(UserError, match=re.escape(message)):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("rwkv7-g1d-1.5b-20260212-ctx8192", 8192),
        ("RWKV-4-Pile-14B-20230313-ctx8192-test1050", 8192),
        ("RWKV-4-Pile-1B5-ctx16k", 16384),
        ("rwkv_ctx10240", 10240),
        ("rwkv-context4096", None),
        ("rwkv-ctx0", None),
        ("rwkv-ctx8192b", None),
        ("rwkv-ctx99999999", None),
    ],
)
def test_the_context_that_a_name_says(tmp_path, name, length):
    assert open_checkpoint(str(save(tmp_path / f"{name}.pth", weights_of()))).context_length == length
    folder = folder_of(tmp_path / name, weights_of())
    assert open_checkpoint(str(folder)).context_length == length
    folder = folder_of(tmp_path / "stated" / name, weights_of(), context_length=512)
    assert resolve(open_checkpoint(str(folder)))[0].context_length == 512
    assert resolve(open_checkpoint(str(folder)), ModelOptions(context_length=99))[0].context_length == 99


@pytest.mark.parametrize("facts", [{"layer_norm_epsilon": 1e-3}, {"layer_norm_epsilon": 1e-2, "rescale_every": 2}, {}])
def test_logits_are_those_of_transformers(tmp_path, facts):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=5, **facts)
    model = transformers.RwkvForCausalLM(config).double()
    weights = synthetic_checkpoint("4", vocab_size=61, hidden_size=32, layers=5)
    model.load_state_dict({huggingface_name(name): torch.from_numpy(array) for name, array in weights.items()})
    model.save_pretrained(tmp_path / "hf")
    model = transformers.RwkvForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64).eval()
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(logits(tmp_path / "hf") - expected).max() < 1e-7 * np.abs(expected).max()


def test_a_wish_goes_before_what_config_json_states(tmp_path):
    folder = folder_of(tmp_path / "hf", weights_of(), rescale_every=1)
    assert resolve(open_checkpoint(str(folder)))[0].rescale_every == 1
    assert resolve(open_checkpoint(str(folder)), ModelOptions(rescale_every=0))[0].rescale_every == 0
    folder_of(tmp_path / "never", weights_of(), rescale_every=-1)
    assert resolve(open_checkpoint(str(tmp_path / "never")))[0].rescale_every == 0


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"vocab_size": 62}, "vocab_size 62, where its tensors have 61"),
        ({"hidden_size": 64}, "hidden_size 64, where its tensors have 32"),
        ({"attention_hidden_size": 64}, "attention_hidden_size 64, where its tensors have 32"),
        ({"intermediate_size": 112}, "intermediate_size 112, where its tensors have 96"),
        ({"num_hidden_layers": 1}, "num_hidden_layers 1, where its tensors have 2"),
        ({"head_size": 8, "num_attention_heads": 4}, "head_size 8, where its tensors have 16; num_attention_heads 4"),
        ({"model_version": "5_0"}, "model_version 5_0, where its tensors have 5.2"),
        ({"model_type": "rwkv4"}, "model_type rwkv4, where its tensors have rwkv5"),
        ({"n_embd": 64, "n_layer": 3}, "hidden_size 64, where its tensors have 32; num_hidden_layers 3, where"),
        ({"dim_att": 64, "dim_ffn": 112}, "attention_hidden_size 64, where its tensors have 32; intermediate_size 112"),
        ({"head_dim": 8, "num_heads": 5}, "head_size 8, where its tensors have 16; num_attention_heads 5"),
    ],
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_what_the_tensors_contradict_is_refused(tmp_path, stated, message, named):
    folder = folder_of(tmp_path / "hf", weights_of(generation="5.2"), **stated)
    checkpoint = open_checkpoint(str(folder if named == "folder" else folder / "model.safetensors"))
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(checkpoint)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"decay_low_rank_dim": 9}, "decay_low_rank_dim 9, where its tensors have {decay_rank}"),
        ({"v_low_rank_dim": 65}, "v_low_rank_dim 65, where its tensors have {value_rank}"),
        ({"architectures": ["RWKV6ForCausalLM"]}, "architectures rwkv6, where its tensors have rwkv7"),
        ({"value_dim": [32, 64]}, "value_dim 32, 64, where its tensors have 32"),
        ({"hidden_size": 32, "hidden_ratio": 7.0}, "intermediate_size 224, where its tensors have {intermediate_size}"),
        ({"norm_bias": False}, "norm_bias as False, expected true, as the layer norms of every RWKV have biases"),
        ({"attn": {"layers": [1]}}, "says that layers are attention's (attn)"),
    ],
)
def test_what_flash_linear_attention_would_compute_otherwise(tmp_path, stated, message):
    weights = weights_of(generation="7")
    config, _, _ = resolve(in_memory(weights))
    folder = folder_of(tmp_path / "hf", weights, norm_eps=4e-5, **stated)
    sizes = {**config.own, "intermediate_size": config.intermediate_size}
    with pytest.raises(UserError, match=re.escape(message.format(**sizes))):
        resolve(open_checkpoint(str(folder)))


def test_what_flash_linear_attention_says_of_these_tensors(tmp_path):
    weights = weights_of(generation="7")
    config, _, _ = resolve(in_memory(weights))
    own = generation_of(config).own_in_configs.items()
    stated: dict[str, object] = {theirs: config.own[ours] for theirs, ours in own}
    stated |= {"architectures": ["RWKV7ForCausalLM"], "value_dim": [32, 32], "norm_bias": True, "attn": None}
    stated |= {"hidden_size": 32, "hidden_ratio": config.intermediate_size / 32, "intermediate_size": None}
    assert len(own) == 4 and min(config.own.values()) > 0
    folder = folder_of(tmp_path / "hf", weights, norm_eps=4e-5, **stated)
    assert resolve(open_checkpoint(str(folder)))[0].own == config.own


def test_what_the_tensors_bear_out_is_no_obstacle(tmp_path):
    stated = {"vocab_size": 61, "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": None}
    stated |= {"num_hidden_layers": 2, "head_size": 16, "model_version": "5_2", "model_type": "rwkv5"}
    for heads in (2, 16):  # RWKV-5's first folders give the size of a head by this name
        folder = folder_of(tmp_path / str(heads), weights_of(generation="5.2"), **stated, num_attention_heads=heads)
        assert resolve(open_checkpoint(str(folder)))[0].num_heads == 2


def test_the_config_of_another_architecture(tmp_path):
    folder = folder_of(tmp_path / "hf", weights_of(), model_type="llama", hidden_size=4096)
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(UserError, match="is of a model of the type 'llama', expected one of RWKV's"):
            open_checkpoint(str(source))
    assert_holds(open_checkpoint(str(save(folder / "RWKV-4.pth", weights_of()))), weights_of())


@pytest.mark.parametrize("named", ["folder", "file"])
@pytest.mark.parametrize("stored", ["emb.weight", "head.weight"])
def test_a_tied_head(tmp_path, named, stored):
    weights = weights_of()
    weights["head.weight"] = weights["emb.weight"]
    lacking = {
        name: array for name, array in weights.items() if name == stored or name not in ("emb.weight", "head.weight")
    }
    folder = folder_of(tmp_path / "hf", lacking, tie_word_embeddings=True)
    assert_holds(open_checkpoint(str(folder if named == "folder" else folder / "model.safetensors")), weights)


def test_a_tied_head_that_is_stored_twice(tmp_path):
    weights = weights_of()
    folder = folder_of(tmp_path / "hf", weights | {"head.weight": weights["emb.weight"]}, tie_word_embeddings=True)
    resolve(open_checkpoint(str(folder)))
    folder = folder_of(tmp_path / "other", weights, tie_word_embeddings=True)
    with pytest.raises(UserError, match="the head is tied to the embedding, but the weights hold a head of their own"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "end", "begin"),
    [
        ({"eos_token_id": 7, "bos_token_id": 3}, None, None, (7,), 3),
        ({"eos_token_id": [0, 7]}, None, None, (0, 7), None),
        ({"eos_token_id": 7, "bos_token_id": 3}, {"eos_token_id": [0, 8], "bos_token_id": 4}, None, (7, 0, 8), 4),
        ({}, {"eos_token_id": 8}, {"eos_token": "<e>"}, (8,), None),
        ({"eos_token_id": None}, {}, None, (), None),
    ],
)
def test_special_tokens(tmp_path, config, generation, tokenizer, end, begin):
    folder = folder_of(tmp_path / "hf", weights_of(), **config)
    for name, content in {"generation_config.json": generation, "tokenizer_config.json": tokenizer}.items():
        if content is not None:
            write_json(folder / name, content)
    for source in (folder, folder / "model.safetensors"):
        tokens = open_checkpoint(str(source)).tokens
        assert (tokens.end, tokens.end_text, tokens.begin) == (end, None, begin)


@pytest.mark.parametrize("token", ["<e>", {"content": "<e>", "lstrip": False}])
def test_the_tokenizers_end_stands_in_where_no_id_is_named(tmp_path, token):
    folder = folder_of(tmp_path / "hf", weights_of())
    write_json(folder / "tokenizer_config.json", {"eos_token": token, "chat_template": "{{ messages }}"})
    assert open_checkpoint(str(folder)).tokens.end_text == "<e>"


@pytest.mark.parametrize("config", [None, {}, {"eos_token": None}])
def test_an_end_that_only_the_map_of_special_tokens_names(tmp_path, config):
    folder = folder_of(tmp_path / "hf", weights_of())
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"eos_token": {"content": "<e>"}, "bos_token": "<b>"})
    assert open_checkpoint(str(folder)).tokens.end_text == "<e>"
    write_json(folder / "tokenizer_config.json", {"eos_token": "<f>"})
    assert open_checkpoint(str(folder)).tokens.end_text == "<f>"


# What trainers write


@pytest.mark.parametrize(
    "prefix",
    [
        "_forward_module.",
        "module.",
        "model.",
        "base_model.model.",
        "_orig_mod.",
        "module._forward_module.model.",
        "rwkv.",
    ],
)
@pytest.mark.parametrize("theirs", [False, True], ids=["BlinkDL's names", "Hugging Face's names"])
def test_a_prefix_of_all_names_is_no_obstacle(tmp_path, prefix, theirs):
    weights = weights_of(generation="5.2")
    rename = huggingface_name if theirs else str
    save_file({prefix + rename(name): array for name, array in weights.items()}, tmp_path / "a.safetensors")
    assert_holds(open_checkpoint(str(tmp_path / "a.safetensors")), weights)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    """Of which one would be built, whichever came last: a model saved over another under other names."""
    weights = weights_of(generation="5.2")
    both = {f"model.{name}": array for name, array in weights.items()}
    both[f"model.{huggingface_name('blocks.1.att.key.weight')}"] = weights["blocks.0.att.key.weight"]
    save_file(both, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=r"hold blocks.1.att.key.weight twice, as model.blocks.1.att.key.weight, model.rwkv"
    ):
        open_checkpoint(str(tmp_path / "a.safetensors"))


def test_mlc_llms_names(tmp_path):
    weights = weights_of(generation="5.2")
    save_file(
        {huggingface_name(n).replace("rwkv.", "model."): a for n, a in weights.items()}, tmp_path / "a.safetensors"
    )
    assert_holds(open_checkpoint(str(tmp_path / "a.safetensors")), weights)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_trainers_save_around_the_weights(tmp_path, generation):
    torch = pytest.importorskip("torch")
    weights = weights_of(generation=generation)
    tensors = {f"_forward_module.{name}": torch.from_numpy(array) for name, array in weights.items()}
    moments = {0: {"step": torch.tensor(3), "exp_avg": torch.ones(2)}}
    beside = {"epoch": 3, "loss": 1.5, "note": "x", "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4}]}}
    for content in (
        {"state_dict": tensors},
        {"state_dict": tensors, "epoch": 3},
        {"model_state_dict": tensors} | beside,
        {"module": tensors} | beside,
        {"model": {"state_dict": tensors}, "epoch": 3},
        tensors | {"epoch": 3},
    ):
        torch.save(content, tmp_path / "a.pth")
        assert_holds(open_checkpoint(str(tmp_path / "a.pth")), weights)


@pytest.mark.parametrize("file", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_dtypes_and_views(tmp_path, dtype, file):
    """A matrix that is stored transposed, and a head that is the embedding's own memory."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    tensors = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in weights_of().items()}
    if file.endswith("pth"):
        tensors["blocks.0.att.key.weight"] = tensors["blocks.0.att.key.weight"].t().contiguous().t()
        tensors["head.weight"] = tensors["emb.weight"]
        torch.save(tensors, tmp_path / file)
    else:
        save_torch_file(tensors, tmp_path / file)
    checkpoint = open_checkpoint(str(tmp_path / file))
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {dtype}
    assert_holds(checkpoint, {name: tensor.double().numpy() for name, tensor in tensors.items()})


@pytest.mark.parametrize("head_size, norm_eps, right", [(64, 1e-5, True), (32, 1e-5, False), (64, 1e-6, False)])
def test_the_epsilon_of_heads_in_folders_of_rwkv_7(head_size, norm_eps, right, tmp_path):
    """flash-linear-attention's is head_dim times norm_eps."""
    save_file(synthetic_checkpoint("7", head_size=head_size), tmp_path / "model.safetensors")
    config = {"model_type": "rwkv7", "head_dim": head_size, "norm_eps": norm_eps}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint = open_checkpoint(str(tmp_path))
    if right:
        assert resolve(checkpoint)[0].group_norm_epsilon == pytest.approx(64e-5)
    else:
        with pytest.raises(UserError, match="means an epsilon of .* for the norm of heads"):
            resolve(checkpoint)
