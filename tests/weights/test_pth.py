"""The .pth reader against PyTorch itself, and against pickles that want more than tensors."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from rwkv_mlc.errors import UserError
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.pth import read_pth
from support.synthetic import synthetic_checkpoint

torch = pytest.importorskip("torch")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def rewrite(source, target, replace=None, compression=zipfile.ZIP_STORED):
    """Copy a zip archive with some members' bytes replaced (or dropped, where the replacement is None)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            member = name.split("/", 1)[1]
            data = (replace or {}).get(member, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, path)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch_on_every_layout(tmp_path, dtype):
    torch.manual_seed(0)
    base = (torch.randn(7, 10) * torch.logspace(-9, 4, 10)).to(dtype)
    base[0, :4] = torch.tensor([0.0, -0.0, float("inf"), float("nan")], dtype=dtype)
    flat = torch.randn(100).to(dtype)
    tensors = {
        "plain": base,
        "transposed": base.t(),
        "strided": base[1::2, 2::3],
        "offset": base[3],
        "expanded": flat[:6].expand(4, 6),
        "scalar": flat[17],
        "permuted": flat[:60].reshape(3, 4, 5).permute(2, 0, 1),
        "shared.one": flat[:50],
        "shared.two": flat[25:75],
        "parameter": torch.nn.Parameter(flat.clone().reshape(10, 10)),
    }
    torch.save(tensors, tmp_path / "model.pth")
    expected = torch.load(tmp_path / "model.pth", weights_only=True)
    found = read_pth(tmp_path / "model.pth")
    assert list(found) == list(tensors)
    for name, tensor in found.items():
        array = tensor.read()
        assert tensor.shape == array.shape == tuple(expected[name].shape)
        assert tensor.dtype == str(dtype).removeprefix("torch.")
        right = expected[name].detach().to(torch.float64 if dtype == torch.float64 else torch.float32).numpy()
        assert array.dtype == right.dtype and array.flags.c_contiguous and array.flags.writeable
        np.testing.assert_array_equal(array, right, err_msg=name)
        np.testing.assert_array_equal(np.signbit(array), np.signbit(right))


def test_state_dict_of_a_module(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    torch.save(module.state_dict(), tmp_path / "model.pth")
    found = read_pth(tmp_path / "model.pth")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found[name].read(), tensor.numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_untyped_storage(tmp_path, dtype):
    """Written for dtypes that have no storage class of their own; it is valid for the others, too."""
    tensor = torch.randn(4, 6).to(dtype)

    class Untyped:
        def __reduce__(self):
            arguments = (tensor.untyped_storage(), 6, (3, 2), (6, 1), False, OrderedDict(), dtype)
            return torch._utils._rebuild_tensor_v3, arguments

    torch.save({"a": Untyped()}, tmp_path / "model.pth")
    expected = torch.load(tmp_path / "model.pth", weights_only=True)["a"]
    found = read_pth(tmp_path / "model.pth")["a"]
    right = expected if dtype == torch.float64 else expected.float()
    np.testing.assert_array_equal(found.read(), right.numpy())


@pytest.mark.parametrize("generation", ["4", "5.0", "5.1", "5.2"])
def test_whole_checkpoint(tmp_path, generation):
    weights = synthetic_checkpoint(generation, layers=2)
    path = tmp_path / "RWKV-x-0.1B.pth"
    torch.save({name: torch.from_numpy(array).bfloat16() for name, array in weights.items()}, path)
    checkpoint = open_checkpoint(str(path))
    assert (checkpoint.name, checkpoint.format, checkpoint.files) == ("RWKV-x-0.1B", "pth", [path])
    assert checkpoint.shapes == {name: array.shape for name, array in weights.items()}
    for name, array in weights.items():
        np.testing.assert_array_equal(
            checkpoint.tensors[name].read(), torch.from_numpy(array).bfloat16().float().numpy(), err_msg=name
        )


def test_needs_no_torch(saved):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from rwkv_mlc.weights import open_checkpoint\n"
        f"print(open_checkpoint({str(saved)!r}).tensors['a'].read().sum())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "66.0\n"


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def global_(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (lambda path: Call(os.system, f"touch {path}"), "system"),
        (lambda path: Call(eval, f"open({str(path)!r}, 'w')"), "eval"),
        (lambda path: Call(exec, f"open({str(path)!r}, 'w')"), "exec"),
        (lambda path: Call(getattr, torch.Size, "__class__"), "getattr"),
        (lambda path: Call(subprocess.Popen, ["touch", str(path)]), "Popen"),
        (lambda path: Call(open, str(path), "w"), "open"),
        (lambda path: Call(torch.load, str(path)), "load"),
        (lambda path: OrderedDict(a=[Call(os.system, f"touch {path}")]), "system"),
    ],
    ids=["system", "eval", "exec", "getattr", "popen", "open", "torch.load", "nested"],
)
def test_refuses_pickles_that_run_code(tmp_path, payload, named):
    sentinel = tmp_path / "was-run"
    torch.save({"emb.weight": torch.ones(2), "x": payload(sentinel)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=rf"evil\.pth cannot be read: the pickle asks for \S*{named}, which is refused"):
        open_checkpoint(str(tmp_path / "evil.pth"))
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02" + global_("posix", "system") + b"(" + text("touch was-run") + b"tR.",
        b"\x80\x02(" + text("touch was-run") + b"i" + b"os\nsystem\n.",
        b"\x80\x04" + stack_global("torch", "FloatStorage.__class__") + b".",
        b"\x80\x04" + stack_global("torch._utils", "_rebuild_parameter.__globals__") + b".",
        b"\x80\x04" + stack_global("collections", "OrderedDict.__init__.__globals__") + b".",
        b"\x80\x04" + stack_global("collections", "_sys.modules") + b".",
        b"\x80\x02" + global_("__builtin__", "getattr") + b"(" + global_("torch", "Size") + text("mro") + b"tR.",
        b"\x80\x02" + global_("builtins", "__import__") + b"(" + text("os") + b"tR.",
        b"\x80\x02" + global_("torch.storage", "_load_from_bytes") + b"(U\x00tR.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_refuses_assembled_pickles(tmp_path, monkeypatch, saved, code):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="refused|damaged pickle"):
        read_pth(rewrite(saved, tmp_path / "evil.pth", {"data.pkl": code}))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter"])
def test_pickles_cannot_change_what_they_name(tmp_path, saved, name):
    """BUILD sets attributes: on a function it could replace its defaults for every later checkpoint."""
    state = b"N}" + text("function") + b"Ns\x86"
    code = b"\x80\x02" + global_("torch._utils", name) + state + b"b."
    with pytest.raises(UserError):
        read_pth(rewrite(saved, tmp_path / "evil.pth", {"data.pkl": code}))
    assert read_pth(saved)["a"].read().sum() == 66


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (0, (3, 4), (4, 2)),
        (-1, (3,), (1,)),
        (5, (3,), (-1,)),
        (0, (2**62, 2**62), (1, 1)),
        (0, (3, 4), (4,)),
        (0, (0, 4), (4, 1)),
        (0, ("3",), (1,)),
        ("0", (3,), (1,)),
        (0, 12, 1),
        (0.0, (3,), (1,)),
    ],
)
def test_refuses_tensors_beyond_their_storage(tmp_path, offset, shape, strides):
    storage = torch.storage.TypedStorage(wrap_storage=torch.arange(12.0).untyped_storage(), dtype=torch.float32)

    class Wrong:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, OrderedDict())

    torch.save({"a": Wrong()}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="tensor a"):
        read_pth(tmp_path / "wrong.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema": {"a": torch.ones(2)}}, "holds a dict under 'ema', expected a dictionary of tensors"),
        ({"a": torch.ones(2), "steps": [3]}, "holds a list under 'steps'"),
        ({"model": {"a": torch.ones(2)}, "state_dict": {"a": torch.ones(2)}}, r"several models \(state_dict, model\)"),
        ({"model": {"model": {"model": {"model": {"a": torch.ones(2)}}}}}, "holds dictionaries in one another"),
        ({3: torch.ones(2)}, "under 3, expected"),
        ([torch.ones(2)], "holds no dictionary; expected a dictionary"),
        (torch.ones(2), "expected a dictionary"),
        ({"a": torch.ones(2, dtype=torch.int64)}, "holds a as int64; expected float64, float32"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, r"torch\.ComplexFloatStorage, which is refused"),
    ],
)
def test_refuses_other_contents(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message):
        read_pth(tmp_path / "model.pth")


def test_refuses_a_whole_module(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear, which is refused"):
        read_pth(tmp_path / "model.pth")


def test_old_format_says_how_to_save_again(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old format; save it again .*torch\.save\(torch\.load\("):
        open_checkpoint(str(tmp_path / "old.pth"))


@pytest.mark.parametrize(
    ("replace", "compression", "message"),
    [
        ({"byteorder": b"big"}, zipfile.ZIP_STORED, "big-endian"),
        ({}, zipfile.ZIP_DEFLATED, "compressed"),
        ({"data/0": b"short"}, zipfile.ZIP_STORED, "tensor a reaches beyond its storage"),
        ({"data/0": None}, zipfile.ZIP_STORED, "lacks data/0"),
        ({"data.pkl": None}, zipfile.ZIP_STORED, "no PyTorch checkpoint"),
        ({"data.pkl": b""}, zipfile.ZIP_STORED, "damaged pickle"),
        ({"data.pkl": b"not a pickle"}, zipfile.ZIP_STORED, "damaged pickle"),
    ],
)
def test_refuses_other_archives(tmp_path, saved, replace, compression, message):
    with pytest.raises(UserError, match=message):
        read_pth(rewrite(saved, tmp_path / "changed.pth", replace, compression))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_two_members_of_one_name(tmp_path, saved):
    """Of which two readers may take different ones."""
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("model/data/0", bytes(48))
    with pytest.raises(UserError, match="has two members of one name"):
        read_pth(saved)


def test_byteorder_may_be_missing(tmp_path, saved):
    assert read_pth(rewrite(saved, tmp_path / "older.pth", {"byteorder": None}))["a"].read().sum() == 66


def test_truncated_anywhere(tmp_path, saved):
    data = saved.read_bytes()
    path = tmp_path / "cut.pth"
    for size in range(0, len(data), 29):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match="truncated|no checkpoint"):
            open_checkpoint(str(path))


def test_damaged_anywhere(tmp_path, saved):
    """A changed byte gives another checkpoint or a sentence, never anything else."""
    generator = random.Random(0)
    data = saved.read_bytes()
    path = tmp_path / "damaged.pth"
    refused = 0
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            changed[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(changed)
        try:
            for tensor in open_checkpoint(str(path)).tensors.values():
                tensor.read()
        except UserError:
            refused += 1
    assert refused > 50


def test_pickle_protocol_4(tmp_path):
    tensors = OrderedDict(a=torch.arange(6.0))
    torch.save(tensors, tmp_path / "model.pth", pickle_protocol=pickle.HIGHEST_PROTOCOL)
    assert read_pth(tmp_path / "model.pth")["a"].read().sum() == 15
