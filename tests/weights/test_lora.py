"""LoRAs: what they add to which matrix, and that none is merged that does not fit wholly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc import Engine, reference
from rwkv_mlc.artifact import Artifact
from rwkv_mlc.building import BuildOptions, build, convert_weight, gen_config
from rwkv_mlc.cli.main import main
from rwkv_mlc.errors import UserError
from rwkv_mlc.inspection import artifact_errors, artifact_summary
from rwkv_mlc.models import GENERATIONS, resolve
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.lora import merged
from rwkv_mlc.weights.parameters import read_parameter
from support.build_inputs import huggingface_name, write_json, write_vocabulary
from support.compiled import in_memory
from support.paths import DEMO
from support.synthetic import synthetic_checkpoint

RANK = 3
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def pairs_of(weights: dict[str, np.ndarray]) -> Pairs:
    """A [r, K] and B [N, r] for a square matrix and for both that are not."""
    rng = np.random.default_rng(1)
    names = [f"blocks.{i}.{part}" for i in (0, 1) for part in ("att.receptance", "ffn.key", "ffn.value")]
    shapes = {name: weights[f"{name}.weight"].shape for name in names}
    return {
        name: (rng.normal(size=(RANK, k)).astype(np.float32), rng.normal(size=(n, RANK)).astype(np.float32))
        for name, (n, k) in shapes.items()
    }


def rwkv_lm(pairs: Pairs) -> dict[str, np.ndarray]:
    return {f"{name}.lora_{side}": array for name, pair in pairs.items() for side, array in zip("AB", pair)}


def peft(pairs: Pairs) -> dict[str, np.ndarray]:
    names = {name: huggingface_name(f"{name}.weight").removesuffix(".weight") for name in pairs}
    return {
        f"base_model.model.{names[name]}.lora_{side}.weight": array
        for name, pair in pairs.items()
        for side, array in zip("AB", pair)
    }


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


def peft_folder(folder: Path, pairs: Pairs, **config) -> Path:
    save(folder / "adapter_model.safetensors", peft(pairs))
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, **config})
    return folder


def model(folder: Path, generation: str = "5.2") -> tuple[Path, dict[str, np.ndarray]]:
    weights = synthetic_checkpoint(generation, layers=2, hidden_size=64, head_size=32)
    return save(folder / "base.safetensors", weights), weights


def assert_merged(checkpoint, weights: dict[str, np.ndarray], pairs: Pairs, scale: float) -> None:
    """Every parameter that the model reads is the base's, or the sum; in float32 from the checkpoint's values."""
    added = {f"{name}.weight": scale * b.astype(np.float64) @ a for name, (a, b) in pairs.items()}
    _, parameters, tensors = resolve(checkpoint)
    _, _, base = resolve(in_memory(weights))
    for parameter in parameters:
        found = read_parameter(parameter, tensors[parameter.source])
        expected = parameter.convert(base[parameter.source].read() + added.get(parameter.source, 0.0))
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-5, err_msg=parameter.source)
    assert {n for n, t in checkpoint.tensors.items() if not np.array_equal(t.read(), weights[n])} == {
        f"{name}.weight" for name in pairs
    }


@pytest.mark.parametrize("generation", GENERATIONS)
def test_rwkv_lm(tmp_path, generation):
    path, weights = model(tmp_path, generation)
    pairs = pairs_of(weights)
    checkpoint = merged(open_checkpoint(str(path)), save(tmp_path / "lora.safetensors", rwkv_lm(pairs)), 7.5)
    assert_merged(checkpoint, weights, pairs, 7.5 / RANK)
    assert (checkpoint.lora.matrices, checkpoint.lora.whole) == (6, 0)


def test_rwkv_lm_as_its_trainer_saves_it(tmp_path):
    """A ``.pth`` with a wrapper's prefix, and the tensors that were trained whole."""
    torch = pytest.importorskip("torch")
    path, weights = model(tmp_path)
    pairs = pairs_of(weights)
    whole = {"blocks.1.ln1.weight": np.full(64, 2.5, np.float32), "blocks.0.att.time_mix_k": np.full((1, 1, 64), 0.25)}
    tensors = {f"_forward_module.{n}": torch.from_numpy(a) for n, a in {**rwkv_lm(pairs), **whole}.items()}
    torch.save(tensors, tmp_path / "lora.pth")
    checkpoint = merged(open_checkpoint(str(path)), tmp_path / "lora.pth", 3)
    for name, array in whole.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].read(), array)
        weights[name] = array
    assert_merged(checkpoint, weights, pairs, 1.0)
    assert checkpoint.lora.whole == 2


@pytest.mark.parametrize(
    ("config", "alpha", "scale"),
    [
        ({}, None, 8 / RANK),
        ({"init_lora_weights": "gaussian"}, 6, 2.0),
        ({"use_rslora": True}, None, 8 / RANK**0.5),
        ({"r": 64, "rank_pattern": {"key": RANK}}, None, 8 / RANK),
    ],
    ids=["its own alpha", "another alpha", "root of the rank", "ranks of modules"],
)
@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_peft(tmp_path, generation, config, alpha, scale):
    path, weights = model(tmp_path, generation)
    pairs = pairs_of(weights)
    folder = peft_folder(tmp_path / "adapter", pairs, **config)
    for source in (folder, folder / "adapter_model.safetensors"):
        assert_merged(merged(open_checkpoint(str(path)), source, alpha), weights, pairs, scale)


def test_peft_of_flas_names(tmp_path):
    """Of flash-linear-attention's RWKV-7."""
    path, weights = model(tmp_path, "7")
    pairs = pairs_of(weights)
    words = {"att.receptance": "attn.r_proj", "blocks.": "model.layers."}
    theirs = {}
    for name, pair in pairs.items():
        for ours, other in words.items():
            name = name.replace(ours, other)
        theirs |= {f"base_model.model.{name}.lora_{side}.weight": array for side, array in zip("AB", pair)}
    save(tmp_path / "peft" / "adapter_model.safetensors", theirs)
    write_json(tmp_path / "peft" / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 6})
    assert_merged(merged(open_checkpoint(str(path)), tmp_path / "peft"), weights, pairs, 2.0)


def changed(pairs: Pairs, **changes) -> dict[str, np.ndarray]:
    tensors = rwkv_lm(pairs)
    for name, array in changes.items():
        name = name.replace("__", ".")
        if array is None:
            del tensors[name]
        else:
            tensors[name] = array
    return tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks__7__att__key__lora_A": np.ones((3, 64)), "blocks__0__att__kei__lora_B": np.ones((64, 3))},
            "is of another model than base, 2 of its tensors do not fit: unknown blocks.0.att.kei.lora_B; unknown "
            "blocks.7.att.key.lora_A.",
        ),
        (
            {"blocks__0__att__receptance__lora_A": None},
            "1 of its tensors does not fit: missing blocks.0.att.receptance.lora_A.",
        ),
        (
            {"blocks__0__ffn__key__lora_A": np.ones((3, 63))},
            "blocks.0.ffn.key is [224, 64], its lora_A [3, 63] and lora_B [224, 3].",
        ),
        ({"blocks__0__ffn__key__lora_A": np.ones((2, 64))}, "its lora_A [2, 64] and lora_B [224, 3]."),
        ({"blocks__1__ln1__weight": np.ones(65)}, "blocks.1.ln1.weight is [65], expected [64]."),
        (
            {"blocks__0__att__receptance__lora_magnitude_vector": np.ones(64)},
            "unknown blocks.0.att.receptance.lora_magnitude",
        ),
    ],
    ids=["names", "half", "shape", "rank", "whole", "magnitudes"],
)
def test_what_does_not_fit_is_listed(tmp_path, changes, message):
    path, weights = model(tmp_path)
    file = save(tmp_path / "lora.safetensors", changed(pairs_of(weights), **changes))
    with pytest.raises(UserError) as raised:
        merged(open_checkpoint(str(path)), file, 8)
    assert message in str(raised.value)


def test_what_is_no_lora_to_merge(tmp_path):
    path, weights = model(tmp_path)
    pairs, checkpoint = pairs_of(weights), open_checkpoint(str(path))
    alone = save(tmp_path / "lora.safetensors", rwkv_lm(pairs))
    folders = {name: peft_folder(tmp_path / name, pairs, **{name: True}) for name in ("use_dora", "fan_in_fan_out")}
    (tmp_path / "empty").mkdir()
    state = save(tmp_path / "state.safetensors", {"blocks.0.att.time_state": np.ones((2, 32, 32))})
    other, text = save(tmp_path / "other.safetensors", {"x": np.ones(3)}), tmp_path / "text"
    text.write_text("he who has no LoRA")
    for source, alpha, message in [
        (alone, None, "does not say the alpha that it was trained with; give it with --lora-alpha N"),
        (path, None, "base.safetensors is a whole model, not a LoRA; give the file that was trained for it"),
        (state, None, "is a tuned state, not a LoRA; give it with --state, beside --model"),
        (other, 8, "holds no LoRA: none of its tensors is called lora_A or lora_B"),
        (text, 8, "is no LoRA .first bytes 68 65.*; expected a PyTorch .* or safetensors file"),
        (tmp_path / "empty", 8, "holds no LoRA; expected adapter_model.safetensors"),
        (tmp_path / "nowhere", 8, "There is no LoRA"),
        (folders["use_dora"], None, "asks for use_dora, and only plain LoRAs"),
        (folders["fan_in_fan_out"], None, "asks for fan_in_fan_out"),
        (peft_folder(tmp_path / "loha", pairs, peft_type="LOHA"), None, "asks for peft_type 'LOHA'"),
        (peft_folder(tmp_path / "zero", pairs, lora_alpha=0), None, "gives lora_alpha as 0"),
        (
            peft_folder(tmp_path / "pissa", pairs, init_lora_weights="pissa_niter_16"),
            None,
            "init_lora_weights 'pissa_niter_16'",
        ),
        (peft_folder(tmp_path / "more", pairs, layer_replication=[[0, 2], [1, 2]]), None, "asks for layer_replication"),
        (peft_folder(tmp_path / "some", pairs, alora_invocation_tokens=[5]), None, "asks for alora_invocation_tokens"),
        (peft_folder(tmp_path / "rank", pairs, r=64), None, "has the rank 3, where adapter_config.json says 64"),
    ]:
        with pytest.raises(UserError, match=message):
            merged(checkpoint, source, alpha)


@pytest.mark.parametrize("names", [rwkv_lm, lambda pairs: {"blocks.1.ln1.weight": np.ones(64)}], ids=["thin", "whole"])
def test_two_tensors_for_one_place(tmp_path, names):
    """Of two trainings under different names, of which the last would be merged and the other lost."""
    path, weights = model(tmp_path)
    pairs = pairs_of(weights)
    wrapped = {f"base_model.model.{name}": array for name, array in names(pairs).items()}
    file = save(tmp_path / "lora.safetensors", rwkv_lm(pairs) | names(pairs) | wrapped)
    with pytest.raises(UserError, match="lora.safetensors holds two tensors for one place, one of them as "):
        merged(open_checkpoint(str(path)), file, 8)


def test_another_scale_is_another_model(tmp_path):
    """So that parameters which were merged with one are not taken for those of the other."""
    path, weights = model(tmp_path)
    hashes = set()
    for by_root in (False, True):
        folder = peft_folder(tmp_path / "adapter", pairs_of(weights), use_rslora=by_root)
        hashes.add(merged(open_checkpoint(str(path)), folder).sha256())
    assert len(hashes) == 2


def test_what_is_no_model(tmp_path):
    """Nor a whole one of which a LoRA's trainer saved both: that is told by its tensors, as before."""
    _, weights = model(tmp_path)
    lora = save(tmp_path / "lora.safetensors", rwkv_lm(pairs_of(weights)))
    state = save(tmp_path / "state.safetensors", {"_forward_module.blocks.0.att.time_state": np.ones((2, 32, 32))})
    for file, message in (
        (lora, "is a LoRA, not a model; give it with --lora, beside --model"),
        (state, "is a tuned state, not a model; give it with --state, beside --model"),
    ):
        with pytest.raises(UserError, match=message):
            open_checkpoint(str(file))
    both = open_checkpoint(str(save(tmp_path / "both.safetensors", weights | rwkv_lm(pairs_of(weights)))))
    with pytest.raises(UserError, match="unknown blocks.0.att.receptance.lora_A"):
        resolve(both)


def test_the_artifact_says_what_was_merged(tmp_path, capsys):
    path, weights = model(tmp_path)
    write_vocabulary(tmp_path / "rwkv_vocab.txt")
    file = save(tmp_path / "lora.safetensors", rwkv_lm(pairs_of(weights)))
    hashes = set()
    for name, options in [
        ("base", BuildOptions()),
        ("merged", BuildOptions(lora=file, lora_alpha=6)),
        ("more", BuildOptions(lora=file, lora_alpha=6.5)),
    ]:
        convert_weight(path, tmp_path / name, "q4f16_1", options)
        gen_config(path, tmp_path / name, "q4f16_1", options)
        hashes.add(Artifact.open(tmp_path / name).record.source_sha256)
    assert len(hashes) == 3
    artifact = Artifact.open(tmp_path / "merged")
    assert (artifact.record.lora.file, artifact.record.lora.alpha) == (str(file), 6.0)
    assert artifact_summary(artifact)["lora"] == {"file": str(file), "alpha": 6.0}
    errors = artifact_errors(artifact, None, lambda done, total: None)
    assert max(error["relative_rms"] for error in errors) < 0.2  # with the base alone it is 1
    capsys.readouterr()
    command = [
        "convert-weight",
        "--model",
        str(path),
        "--lora",
        str(path),
        "--lora-alpha",
        "4",
        "-o",
        str(tmp_path / "x"),
    ]
    assert main(command) == 2 and not (tmp_path / "x").exists()
    assert main(["convert-weight", "--model", str(path), "--lora-alpha", "4", "-o", str(tmp_path / "x")]) == 2
    assert "--lora-alpha is of a LoRA; give its file with --lora." in capsys.readouterr().err


def test_what_runs_is_the_sum(demo, tmp_path, capsys):
    """An artifact of the demo model, with the library of the one without a LoRA, beside the reference on the sums."""
    base = open_checkpoint(str(DEMO))
    rng, hidden_size = np.random.default_rng(2), base.shapes["emb.weight"][1]
    thin = {"A": (RANK, hidden_size), "B": (hidden_size, RANK)}
    tensors = {f"blocks.0.att.key.lora_{side}": rng.normal(0, 0.05, shape) for side, shape in thin.items()}
    file = save(tmp_path / "lora.safetensors", {name: array.astype(np.float32) for name, array in tensors.items()})
    (library,) = demo.glob("*-llvm.so")
    options = BuildOptions(lora=file, lora_alpha=9.0, artifact_name="merged")
    artifact = build(DEMO, "llvm", "q0f32", tmp_path, options, reuse_lib=library).path
    tokens = list(range(40, 60))
    expected, _ = reference.forward(*reference.load(merged(base, file, 9.0)), tokens)
    plain, _ = reference.forward(*reference.load(base), tokens)
    engine = Engine(artifact)
    found = engine.prefill(tokens, engine.new_state())
    assert np.abs(found - expected[-1]).max() < 1e-5 * np.abs(expected[-1]).max()
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()
    assert main(["debug", str(artifact), "--against", str(DEMO)]) == 0
    assert "The stored weights are those of the checkpoint." in capsys.readouterr().out
