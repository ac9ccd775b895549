"""What libraries say of themselves, also those that were built before they said all of it, and the sentences about files
that do not fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_mlc import schema
from rwkv_mlc.engine.older_libraries import described
from rwkv_mlc.errors import UserError
from rwkv_mlc.quantization.layouts import LAYOUTS
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.schema import LibraryMetadata, StateSpec, TensorSpec
from rwkv_mlc.typed_json import Count, Extent, FileName, Schema, parse, read

ROOT = Path(__file__).parents[2]
# Of libraries built before they described their states and functions, cut to two layers and a few kernel calls.
OLD = {name: (Path(__file__).parent / f"metadata_{name}.json").read_text("utf-8") for name in ("rwkv4", "rwkv5")}


def test_libraries_of_before_are_read():
    metadata = described(LibraryMetadata.read(OLD["rwkv5"]))
    assert (metadata.interface, metadata.target, metadata.quantization) == ("native", "llvm", "q4f16_1")
    assert (metadata.config.generation, metadata.config.num_heads, metadata.prefill_activations) == (
        "5.2",
        2,
        "float32",
    )
    assert [state.name for state in metadata.states] == [
        f"blocks.{layer}.{role}" for layer in (0, 1) for role in ("att_x", "att_kv", "ffn_x")
    ]
    assert metadata.states[4] == StateSpec(layer=1, role="att_kv", shape=(2, 64, 64), dtype="float32", initial=0.0)
    assert metadata.params[0].name == "model.embeddings.q_weight" and metadata.params[0].shape == (768, 16)
    assert metadata.params[-1].layout == "row_blocks"
    decode = metadata.functions["decode"]
    assert decode.arguments[0] == TensorSpec(name="tokens", shape=(1,), dtype="int32")
    assert decode.arguments[3:] == ("states", "params")
    assert metadata.functions["score"].result.shape == (1, "T", 768)
    assert metadata.values["decode"] == ()
    assert metadata.values["prefill"][1] == ("embedding", {3: "emb"})
    several = [names for call in metadata.values["prefill"] for names in call.outputs.values()]
    assert any(isinstance(names, tuple) and len(names) == 4 for names in several)


@pytest.mark.parametrize("size", [0, 4096])
def test_an_old_library_whose_model_would_have_no_heads(size):
    text = json.dumps(json.loads(OLD["rwkv5"]), separators=(",", ":")).replace('"head_size":64', f'"head_size":{size}')
    with pytest.raises(UserError, match=f"heads of {size} channels and 128 channels in all, which leaves no head"):
        described(LibraryMetadata.read(text))


def test_how_much_of_a_prompt_a_call_reads():
    """What its memory is planned for, unless less is asked for; a library without a plan reads what is asked for."""
    metadata = described(LibraryMetadata.read(OLD["rwkv5"]))
    assert metadata.prefill_chunk(2048) == 2048
    prefill = metadata.functions["prefill"].model_copy(update={"planned": {"T": 512}})
    planned = metadata.model_copy(update={"functions": metadata.functions | {"prefill": prefill}})
    assert (planned.prefill_chunk(2048), planned.prefill_chunk(100)) == (512, 100)


def test_initial_values_of_states():
    states = described(LibraryMetadata.read(OLD["rwkv4"])).states
    initial = {state.role: state.initial for state in states if state.layer == 1}
    assert initial.pop("att_p") == -1e30
    assert set(initial.values()) == {0.0}


@pytest.mark.parametrize("name", OLD)
def test_metadata_comes_back(name):
    metadata = LibraryMetadata.read(OLD[name])
    old, text = json.loads(OLD[name]), metadata.model_dump_json(by_alias=True, exclude_none=True)
    assert {key: json.loads(text)[key] for key in old} == old
    assert LibraryMetadata.read(text) == metadata
    full = described(metadata)
    assert LibraryMetadata.read(full.model_dump_json(by_alias=True)) == full
    assert all(spec.stored_shape for spec in full.params)


def test_a_library_that_describes_itself_needs_no_model():
    text = described(LibraryMetadata.read(OLD["rwkv5"])).model_dump_json(by_alias=True)
    code = (
        "import sys; from rwkv_mlc.schema import LibraryMetadata\n"
        "from rwkv_mlc.engine.older_libraries import described\n"
        "assert described(LibraryMetadata.read(sys.argv[1])).states\n"
        "assert not any(name.startswith(('rwkv_mlc.models', 'tvm')) for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, text], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.pop("params"), "The metadata of x.so lacks params; build it again"),
        (lambda data: data["params"][1].update(shape=[0]), r"gives params\[1\].shape\[0\] as 0, expected at least 1;"),
        (lambda data: data["params"][1].update(dtype=None), r"gives params\[1\].dtype as None, expected a string;"),
        (
            lambda data: data["params"][1].update(layout="spiral"),
            r"layout as 'spiral', expected one of stored, mapped, transposed, ",
        ),
        (lambda data: data["values"]["prefill"][1].pop(), r"values.prefill\[1\]"),
        (lambda data: data["values"]["prefill"][1][1].update({"-1": "emb"}), r"values.prefill\[1\]"),
        (lambda data: data.update(states=[{"layer": -1, "role": "att_x", "shape": [1]}]), r"states\[0\].layer as -1"),
        (
            lambda data: data["model_config"].update(vocab_size="768"),
            "model_config.vocab_size as '768', expected an int",
        ),
    ],
)
def test_metadata_that_does_not_fit(change, message):
    data = json.loads(OLD["rwkv5"])
    change(data)
    with pytest.raises(UserError, match=message):
        LibraryMetadata.read(json.dumps(data), "x.so")


class Cat(Schema):
    name: FileName
    legs: Count = 4
    lives: tuple[Extent, ...] = ()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"cat.json is not JSON \(EOF while parsing an object at line 1 column 1\); draw it again."),
        (b"\xff\xfe", r"cat.json is not JSON \(.*\); draw it again."),
        ("[" * 100000, r"cat.json is not JSON \(recursion limit exceeded .*\); draw it again."),
        ("[1]", "cat.json holds a list, expected an object; draw it again."),
        ("{}", "cat.json lacks name; draw it again."),
        ('{"name": 3}', "cat.json gives name as 3, expected a string; draw it again."),
        ('{"name": "a", "legs": "4"}', "gives legs as '4', expected an integer;"),
        ('{"name": "a", "legs": true}', "gives legs as True, expected an integer;"),
        ('{"name": "a", "legs": -1}', "gives legs as -1, expected at least 0;"),
        ('{"name": "a", "lives": [9, 0]}', r"gives lives\[1\] as 0, expected at least 1;"),
        ('{"name": "../a"}', "gives name as '../a', expected the name of a file in the same folder;"),
        ('{"name": "c:\\\\a"}', "expected the name of a file in the same folder;"),
        ('{"name": ".."}', "expected the name of a file in the same folder;"),
        ('{"name": "' + "a/" * 1000 + '"}', r"gives name as 'a/a/.*\.\.\..*a/a/', expected"),
    ],
)
def test_sentences(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        parse(Cat, text, "cat.json", "draw it again")
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)
    (tmp_path / "cat.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=message):
        read(Cat, tmp_path / "cat.json", "draw it again")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="cat.json is missing; draw it again."):
        read(Cat, tmp_path / "cat.json", "draw it again")
    with pytest.raises(UserError, match=r"cannot be read \(.*directory\); draw it again."):
        read(Cat, tmp_path, "draw it again")


def test_keys_of_a_newer_version_are_passed_over():
    assert parse(Cat, '{"name": "Tom", "mood": "good"}', "cat.json", "") == Cat(name="Tom")


def test_the_page_is_written_from_the_types():
    """``python tools/make_artifact_page.py`` writes the tables."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); import make_artifact_page as tool\n"
        "text = tool.PAGE.read_text(encoding='utf-8'); print(tool.page(text) == text)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "True\n"


def test_the_page_has_every_type():
    page = (ROOT / "docs" / "artifact.md").read_text(encoding="utf-8")
    of_other_files = {"FolderConfig", "WeightIndex", "DumpHeader"}
    types = {
        name
        for name, kind in vars(schema).items()
        if isinstance(kind, type) and kind.__module__ == schema.__name__ and name not in of_other_files
    }
    assert {"LibraryMetadata", "ChatConfig", "TensorIndex", "BuildRecord", "DumpFile"} <= types
    assert {name for name in types if f"<!-- {name}: begin -->" not in page} == set()
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links - {heading.lower() for heading in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)} == set()


def test_every_field_has_a_meaning():
    page = (ROOT / "docs" / "artifact.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|[^|]+\| +\|$", page, re.MULTILINE) == []


def test_layouts_on_the_page():
    page = (ROOT / "docs" / "artifact.md").read_text(encoding="utf-8")
    assert {name for name in LAYOUTS if f"`{name}`" not in page} == set()


def test_schemes_on_the_page():
    page = (ROOT / "docs" / "artifact.md").read_text(encoding="utf-8")
    assert {name for name in SCHEMES if not re.search(rf"\| .*\b{name}\b.* \|", page)} == set()
