from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import unicodedata
from importlib import resources
from pathlib import Path

import msgpack
import numpy as np
import pytest
import tokenizers

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.errors import UserError
from rwkv_mlc.tokenizer import Tokenizer, check_vocabulary, find_vocabulary, load_tokenizer, write_tokenizer_files
from rwkv_mlc.tokenizer.world import WorldTokenizer
from rwkv_mlc.weights.checkpoint import Checkpoint

WORLD = Path(str(resources.files("pyrwkv_tokenizer") / "rwkv_vocab_v20230424.txt"))
SMALL = ["1 'a' 1", "2 'b' 1", "3 'ab' 2", "5 b'\\xe5\\xa5' 2", "6 b'\\xbdab' 3", "7 '\\n\\'\"\\\\' 4", "8 '🤗' 4"]


@pytest.fixture(scope="module")
def world():
    return load_tokenizer(WORLD)


@pytest.fixture(scope="module")
def oracle():
    """The ``rwkv`` package's own tokenizer."""
    module = pytest.importorskip("rwkv.rwkv_tokenizer")
    return module.TRIE_TOKENIZER(str(WORLD))


@pytest.fixture(scope="module")
def pile_path(tmp_path_factory) -> Path:
    """A byte-level BPE with the shape of 20B_tokenizer.json: specials first, then a non-special run of spaces last."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.normalizer = tokenizers.normalizers.NFC()
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([mixed_text(20_000, seed=3), "so\n\nthis\n\n", "end\n\n"] * 3, trainer)
    bpe.add_tokens([tokenizers.AddedToken(" " * 8, special=False)])
    path = tmp_path_factory.mktemp("pile") / "20B_tokenizer.json"
    bpe.save(str(path))
    return path


@pytest.fixture(scope="module")
def pile(pile_path):
    return load_tokenizer(pile_path)


def mixed_text(size: int, seed: int) -> str:
    """At least ``size`` bytes of words, code, Chinese, emoji, rare scripts and odd white space."""
    rng = random.Random(seed)
    words = "the of and model state token attention User Assistant Question 2023 3.14 don't naïve Straße".split()
    code = ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\n", "</div>\r\n", "!="]
    spaces = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\u00a0", "\u200b", "\x0b", "\x00", " " * 17, "\n" * 5]
    # ASCII, Latin, Greek, Cyrillic, Hebrew and Arabic, Devanagari, Georgian, Ethiopic, kana, Han, Hangul, cuneiform,
    # emoji: the first character and how many.
    starts = [0x20, 0xA0, 0x370, 0x400, 0x590, 0x900, 0x10A0, 0x1200, 0x3040, 0x4E00, 0xAC00, 0x12000, 0x1F300]
    counts = [95, 416, 144, 256, 368, 128, 96, 381, 192, 20_000, 11_172, 922, 2_047]

    def piece() -> str:
        kind = rng.randrange(6)
        if kind < 2:
            return " ".join(rng.choices(words, k=rng.randrange(1, 9)))
        if kind == 2:
            return rng.choice(code)
        if kind == 3:
            return "".join(rng.choices(spaces, k=3))
        start, count = rng.choice(list(zip(starts, counts, strict=True)))
        return "".join(chr(start + rng.randrange(count)) for _ in range(rng.randrange(1, 12)))

    pieces, length = [], 0
    while length < size:
        pieces.append(piece())
        length += len(pieces[-1].encode("utf-8"))
    return "".join(pieces)


def checkpoint(*files: Path) -> Checkpoint:
    return Checkpoint("some-model", "memory", "somewhere", {}, tokenizer_files=list(files))


def config(vocab_size: int) -> RWKVConfig:
    return RWKVConfig("4", vocab_size, 64, 2, 256)


def write_vocabulary(folder: Path, lines: list[str], name: str = "small_vocab.txt") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# World


def test_world_ids_equal_the_rwkv_packages_on_a_megabyte_of_mixed_text(world, oracle):
    text = mixed_text(1_000_000, seed=0)
    ids = world.encode(text)
    assert ids == oracle.encode(text)
    assert world.decode(ids) == text


def test_world_ids_equal_the_rwkv_packages_on_random_bytes_and_round_trip(world, oracle):
    rng = random.Random(1)
    for _ in range(10_000):
        data = rng.randbytes(rng.randrange(40))
        ids = world.encode(data)
        assert ids == oracle.encodeBytes(data)
        assert world.decode_bytes(ids) == data


def test_world_known_ids(world):
    assert world.encode("Assistant: Hello") == [5585, 41693, 59, 36786]
    assert world.encode("\n\n") == [261]
    assert world.encode("。\n\n") == [28329, 11]
    assert world.encode("🤗".encode()) == [3319, 165, 152]
    assert len(world.encode("<|endoftext|>")) == 7
    assert world.encode("") == world.encode(b"") == []
    assert world.decode([]) == ""


def test_world_tokens_that_are_part_of_a_character(world):
    assert [world.token_bytes(token) for token in (3319, 165, 152)] == [b"\xf0\x9f", b"\xa4", b"\x97"]
    assert world.decode([3319]) == "\ufffd"


def test_world_valid_ids(world):
    valid = world.valid_ids(65536)
    assert valid.dtype == bool and valid.shape == (65536,)
    np.testing.assert_array_equal(np.flatnonzero(~valid), range(65530, 65536))
    assert world.token_bytes(0) == b""
    for token in (65530, -1, 10**9):
        with pytest.raises(UserError, match="not in the vocabulary"):
            world.token_bytes(token)


def test_undecodable_arguments_keep_their_bytes(world):
    assert world.encode("a\udcffb") == world.encode(b"a\xffb")
    with pytest.raises(UserError, match=r"U\+D800"):
        world.encode("a\ud800")


def test_any_world_vocabulary(tmp_path):
    """Gaps, a line for id 0, bytes that are not spelled in hexadecimal, tokens across characters."""
    small = load_tokenizer(write_vocabulary(tmp_path, ["0 '<|end|>' 7", *SMALL, "9 b'(\\xff' 2"]))
    assert small.encode("好ab") == [5, 6]
    assert small.encode(b"ab\xe5\xa5a") == [3, 5, 1]
    assert small.encode("\n'\"\\🤗") == [7, 8]
    assert small.encode(b"(\xffabb") == [9, 3, 2]
    assert small.decode([0, 8, 7]) == "🤗\n'\"\\"
    np.testing.assert_array_equal(np.flatnonzero(small.valid_ids(12)), [0, 1, 2, 3, 5, 6, 7, 8, 9])


@pytest.mark.parametrize(("text", "position"), [("c", 0), ("abc", 2), ("a好a", 3), ("<|end|>", 0)])
def test_text_that_a_vocabulary_cannot_spell_is_refused(tmp_path, text, position):
    small = load_tokenizer(write_vocabulary(tmp_path, SMALL))
    with pytest.raises(UserError, match=f"at position {position} "):
        small.encode(text)


def test_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join(SMALL).encode("utf-8"))
    assert load_tokenizer(path).encode("ab") == [3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9", "expected"),
        ("x 'c' 1", "expected"),
        ("-9 'c' 1", "expected"),
        ("9 'c'", "expected"),
        ("", "expected"),
        ("9 'c' 2", "has 1 bytes, not 2"),
        ("9 '' 0", "non-empty"),
        ("9 c 1", "not a Python literal"),
        ("9 ['c'] 1", "not a Python literal"),
        ("9 'c 1", "not a Python literal"),
        ("9 '\\ud800' 3", "not a Python literal"),
        ("9 __import__('os').getcwd() 9", "not a Python literal"),
        ("9 " + "(" * 5000 + " 9", "not a Python literal"),
        ("3 'c' 1", "id 3 was given before"),
        ("9 b'ab' 2", "already has id 3"),
        ("65536 'c' 1", "above 65535"),
    ],
)
def test_malformed_vocabularies_are_refused_by_line(tmp_path, line, message):
    path = write_vocabulary(tmp_path, [*SMALL, line, "10 'd' 1"])
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(path)
    assert f"{path}, line {len(SMALL) + 1}: " in str(error.value)


def test_unreadable_vocabularies_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_tokenizer(tmp_path / "absent.txt")
    binary = tmp_path / "model.pth"
    binary.write_bytes(b"\x80\xff\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(binary)


# Pile


def test_pile_ids_are_the_librarys_and_round_trip(pile, pile_path):
    text = unicodedata.normalize("NFC", mixed_text(50_000, seed=4)) + "."
    ids = pile.encode(text)
    assert ids == tokenizers.Tokenizer.from_file(str(pile_path)).encode(text).ids
    assert pile.decode(ids) == text
    assert b"".join(pile.token_bytes(token) for token in ids) == text.encode("utf-8")


def test_pile_takes_any_bytes(pile):
    rng = random.Random(2)
    for _ in range(300):
        data = rng.choice([b"", b"text ", "好".encode()]) + rng.randbytes(rng.randrange(12))
        if unicodedata.is_normalized("NFC", data.decode("utf-8", "surrogateescape")):
            assert pile.decode_bytes(pile.encode(data)) == data
    assert pile.encode("") == []


def test_pile_final_blank_line_is_two_newlines(pile, pile_path):
    """As when more text follows at once."""
    library = tokenizers.Tokenizer.from_file(str(pile_path))
    newline, pair = library.token_to_id("Ċ"), library.token_to_id("ĊĊ")
    assert library.encode("so\n\n").ids[-1] == pair
    assert pile.encode("so\n\n")[-2:] == [newline, newline]
    assert pile.encode("so\n\n") + pile.encode("this") == pile.encode("so\n\nthis")


def test_special_tokens_are_their_ids_and_never_masked(pile):
    assert pile.encode("<|endoftext|>") == [0] and pile.encode("<|padding|>") == [1]
    assert pile.token_bytes(0) == b"" and pile.token_bytes(1) == b"<|padding|>"
    assert pile.end_ids == {0}
    np.testing.assert_array_equal(np.flatnonzero(~pile.valid_ids(402)), [401])
    assert pile.token_bytes(400) == b" " * 8
    with pytest.raises(UserError, match="Token 401 "):
        pile.token_bytes(401)


def test_files_that_are_no_byte_level_bpe_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "tokenizer.json")
    for text in ("", "{}", '{"model": 3}', "[" * 100_000):
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="not a tokenizer.json"):
            load_tokenizer(tmp_path / "tokenizer.json")
    tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not a byte-level BPE"):
        load_tokenizer(tmp_path / "tokenizer.json")


SPECIALS = ["<|im_start|>", "<|im_end|>"]


def write_bpe(path: Path, *, byte_level: bool = True, specials: tuple[str, ...] = ("<|endoftext|>",), **parts) -> Path:
    """A small BPE with added special tokens behind its vocabulary; ``parts`` are set as the library's parts."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    if byte_level:
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=list(specials),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["hello world, hello there"] * 3, trainer)
    for name, part in parts.items():
        setattr(bpe, name, part)
    bpe.add_special_tokens(SPECIALS)
    bpe.add_tokens(
        [
            tokenizers.AddedToken("<think>", special=False),
            tokenizers.AddedToken("<left>", special=True, lstrip=True, rstrip=True),
            tokenizers.AddedToken("ωmega", special=False, normalized=True),
            tokenizers.AddedToken("word", special=False, single_word=True),
        ]
    )
    bpe.save(str(path))
    return path


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"normalizer": tokenizers.normalizers.Strip()},
        {},
    ],
)
def test_what_stands_within_a_text_is_spelled_as_it_is(parts, tmp_path):
    """Where ``encode`` adds a space or takes spaces away, as at the beginning of a text."""
    tokenizer = load_tokenizer(write_bpe(tmp_path / "tokenizer.json", **parts))
    for data in (b"lo there", b" th", b" ", b"", b"  hello \n", "é".encode()[:1], b"\xff ", " é好 ".encode()):
        assert tokenizer.decode_bytes(tokenizer.spell(data)) == data
    if not parts:
        assert tokenizer.spell(b" hello") == tokenizer.encode(" hello")


def test_what_no_token_spells(tmp_path):
    path = write_vocabulary(tmp_path, ["1 'a' 1", "2 'b' 1"])
    with pytest.raises(UserError):
        load_tokenizer(path).spell(b"ac")


MARKED = [
    "<|im_start|>user\nhello<|im_end|>",
    "hello   <left>   world <think>there</think>",
    "ωmega wordy word swordfish <|im_end|><|im_end|>",
    "<|endoftext|><|im_start|> héllo 好 \U0001f917 <|im_",
]


@pytest.mark.parametrize("text", MARKED)
@pytest.mark.parametrize("normalizer", [None, tokenizers.normalizers.NFC(), tokenizers.normalizers.NFD()], ids=str)
def test_added_tokens_are_those_of_the_library(tmp_path, text, normalizer):
    path = write_bpe(tmp_path / "tokenizer.json", **({"normalizer": normalizer} if normalizer else {}))
    ours, library = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    ids = ours.encode(text)
    assert ids == library.encode(text).ids
    shown = [token for token in ids if token]  # id 0, the end of text, is not shown
    assert ours.decode(ids) == library.decode(shown, skip_special_tokens=False)
    assert b"".join(map(ours.token_bytes, ids)) == ours.decode_bytes(ids)
    assert (
        ours.valid_ids(320)[: library.get_vocab_size()].all()
        and not ours.valid_ids(320)[library.get_vocab_size() :].any()
    )


def test_an_added_token_is_its_text_though_its_characters_stand_for_bytes_elsewhere(tmp_path):
    """The library decodes it to bytes that are no text."""
    library = tokenizers.Tokenizer.from_file(str(write_bpe(tmp_path / "tokenizer.json")))
    library.add_tokens(["Größe"])
    library.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert ours.decode(ours.encode("Größe ößö")) == "Größe ößö"


def test_tokens_that_only_the_tokenizer_config_adds_are_refused(tmp_path):
    """transformers adds them to those of the tokenizer.json."""
    path = write_bpe(tmp_path / "tokenizer.json")
    known = load_tokenizer(path).encode("<|im_end|>")[0]
    beside = tmp_path / "tokenizer_config.json"
    beside.write_text(json.dumps({"added_tokens_decoder": {str(known): {"content": "<|im_end|>"}}}), encoding="utf-8")
    load_tokenizer(path)
    beside.write_text(json.dumps({"added_tokens_decoder": {"300": {"content": "<|more|>"}}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"adds tokens that its tokenizer.json does not have: 300 \('<\|more\|>'\)"):
        load_tokenizer(path)


def test_an_id_0_that_is_a_token_like_any(tmp_path):
    """As in GPT-2's vocabulary, whose end of text is its last id."""
    small = load_tokenizer(write_bpe(tmp_path / "tokenizer.json", specials=()))
    assert small.end_ids == frozenset() and small.token_bytes(0) == b"!"
    assert small.decode(small.encode("hello!")) == "hello!" and small.encode("!") == [0]


def test_a_saved_truncation_or_padding_does_not_change_prompts(tmp_path):
    path = write_bpe(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(path))
    expected = library.encode("hello there world").ids
    library.enable_truncation(2)
    library.enable_padding(length=9)
    library.save(str(path))
    assert load_tokenizer(path).encode("hello there world") == expected


def test_bytes_that_a_bpe_has_no_token_for_are_refused(tmp_path):
    """The library passes over them."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens(["<|end|>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    small = load_tokenizer(tmp_path / "tokenizer.json")
    assert small.encode("abba<|end|>") == [2, 1, 0, 3]
    with pytest.raises(UserError, match="has no token for byte 0x63"):
        small.encode("abc")


def word_level() -> tokenizers.models.WordLevel:
    return tokenizers.models.WordLevel({"hello": 1, "world": 2, "[UNK]": 0}, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": word_level(), "pre_tokenizer": tokenizers.pre_tokenizers.Whitespace()}, "its model is WordLevel"),
        ({"model": word_level()}, "its model is WordLevel"),
        ({"model": tokenizers.models.WordPiece({"[UNK]": 0, "a": 1})}, "its model is WordPiece"),
        ({"model": tokenizers.models.Unigram([("a", -1.0)])}, "its model is Unigram"),
        ({"pre_tokenizer": tokenizers.pre_tokenizers.WhitespaceSplit()}, "with WhitespaceSplit, without ByteLevel"),
        ({"pre_tokenizer": tokenizers.pre_tokenizers.Metaspace()}, "with Metaspace, without ByteLevel"),
        (
            {
                "pre_tokenizer": tokenizers.pre_tokenizers.Sequence(
                    [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.ByteLevel()]
                )
            },
            "loses parts of a text with WhitespaceSplit",
        ),
        (
            {
                "pre_tokenizer": tokenizers.pre_tokenizers.Sequence(
                    [tokenizers.pre_tokenizers.Split(" ", "removed"), tokenizers.pre_tokenizers.ByteLevel()]
                )
            },
            "loses parts of a text with Split",
        ),
        ({"decoder": tokenizers.decoders.WordPiece()}, "decodes with WordPiece"),
        ({"decoder": tokenizers.decoders.BPEDecoder()}, "decodes with BPEDecoder"),
        (
            {"post_processor": tokenizers.processors.TemplateProcessing("<|im_end|> $A", None, [("<|im_end|>", 280)])},
            "adds tokens to every text",
        ),
        ({"model": tokenizers.models.BPE({"a": 0}, [], dropout=0.5)}, "has dropout 0.5"),
        ({"model": tokenizers.models.BPE({"a": 0}, [], byte_fallback=True)}, "has byte_fallback True"),
        ({"model": tokenizers.models.BPE({"a": 0}, [], end_of_word_suffix="</w>")}, "has end_of_word_suffix '</w>'"),
    ],
)
def test_tokenizers_of_other_kinds_are_refused_by_what_they_are(tmp_path, parts, message):
    path = write_bpe(tmp_path / "tokenizer.json", **parts)
    with pytest.raises(UserError, match=f"not a byte-level BPE vocabulary: .*{message}.*20B_tokenizer.json"):
        load_tokenizer(path)


def test_the_pre_tokenizers_of_other_byte_level_bpes(tmp_path):
    """GPT-4's and Qwen's split by an expression first, and have ByteLevel in a sequence."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\p{N}|\s+(?!\S)| ?\p{L}+"), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    path = write_bpe(tmp_path / "tokenizer.json", pre_tokenizer=tokenizers.pre_tokenizers.Sequence([split, byte_level]))
    ours, library = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    text = mixed_text(3000, seed=5) + "."
    assert ours.encode(text) == library.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


# Which vocabulary a model takes


def test_the_installed_world_vocabulary_is_found():
    assert find_vocabulary(checkpoint(), config(65536)) == [WORLD]


def test_the_checkpoints_own_vocabulary_goes_first(tmp_path):
    own = write_vocabulary(tmp_path, SMALL)
    assert find_vocabulary(checkpoint(tmp_path / "tokenizer_config.json", own), config(16)) == [own]
    mine = shutil.copy(WORLD, tmp_path / "rwkv_vocab.txt")
    assert find_vocabulary(checkpoint(mine), config(65536)) == [mine]


def test_of_several_vocabularies_the_one_that_fits_is_taken(pile_path, tmp_path):
    own = write_vocabulary(tmp_path, SMALL)
    assert find_vocabulary(checkpoint(own, pile_path), config(401)) == [pile_path]


def test_a_world_model_beside_another_models_vocabulary(pile_path):
    """Beside a Pile vocabulary that does not fit, it takes the installed one."""
    assert find_vocabulary(checkpoint(pile_path), config(65536)) == [WORLD]
    with pytest.raises(UserError, match="ids up to 400, which does not fit"):
        find_vocabulary(checkpoint(pile_path), config(50277))


def test_a_tokenizer_of_another_kind_is_no_reason_to_take_the_installed_vocabulary(tmp_path):
    """It may well be the model's own."""
    path = write_bpe(tmp_path / "tokenizer.json", model=word_level())
    with pytest.raises(UserError, match="its model is WordLevel"):
        find_vocabulary(checkpoint(path), config(65536))


def test_several_vocabularies_that_fit_are_asked_for_by_name(pile_path, tmp_path):
    lines = [f"{i} {bytes([i // 256, i % 256])!r} 2" for i in range(1, 401)]
    own = write_vocabulary(tmp_path, lines)
    message = f"Several vocabularies fit a model of 401 tokens: {own}, {pile_path}; name.*--tokenizer PATH"
    with pytest.raises(UserError, match=message):
        find_vocabulary(checkpoint(own, pile_path), config(401))
    assert find_vocabulary(checkpoint(own, pile_path), config(401), pile_path) == [pile_path]
    shutil.copy(own, tmp_path / "tokenizers_vocab.txt")
    shutil.copy(pile_path, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="Several vocabularies fit"):
        find_vocabulary(checkpoint(), config(401), tmp_path)


def test_the_same_vocabulary_twice_is_one(pile_path, tmp_path):
    again = Path(shutil.copy(pile_path, tmp_path / "tokenizer.json"))
    again.write_text(tokenizers.Tokenizer.from_file(str(pile_path)).to_str(pretty=True), encoding="utf-8")
    assert find_vocabulary(checkpoint(pile_path, again), config(401)) == [pile_path]
    own = write_vocabulary(tmp_path, SMALL)
    same = write_vocabulary(tmp_path, SMALL[::-1], "another_vocab.txt")
    assert find_vocabulary(checkpoint(own, same), config(9)) == [own]


def test_of_a_named_folder_the_vocabulary_that_fits_is_taken(pile_path, tmp_path):
    write_vocabulary(tmp_path, SMALL)
    mine = Path(shutil.copy(pile_path, tmp_path / "20B_tokenizer.json"))
    assert find_vocabulary(checkpoint(), config(401), tmp_path) == [mine]


@pytest.mark.parametrize("vocab_size", [50277, 50304, 50400, 50432, 50688, 51200])
def test_heads_of_the_pile_may_be_padded(vocab_size):
    check_vocabulary(sized_tokenizer(50277), vocab_size)


@pytest.mark.parametrize("vocab_size", [50276, 50406, 50500, 51201, 52224, 65536])
def test_heads_that_no_padding_explains(vocab_size):
    with pytest.raises(UserError, match="ids up to 50276, which does not fit"):
        check_vocabulary(sized_tokenizer(50277), vocab_size)


def sized_tokenizer(size: int) -> WorldTokenizer:
    tokenizer = object.__new__(WorldTokenizer)
    Tokenizer.__init__(tokenizer, [Path("vocab.txt")], {size - 1: b"a"})
    return tokenizer


def test_a_missing_vocabulary_is_asked_for():
    with pytest.raises(UserError, match="20B_tokenizer.json.*--tokenizer PATH"):
        find_vocabulary(checkpoint(), config(50277))
    with pytest.raises(UserError, match="1024 tokens.*--tokenizer PATH"):
        find_vocabulary(checkpoint(), config(1024))


@pytest.mark.parametrize("vocab_size", [50277, 65529, 65530 + 128, 131072])
def test_a_vocabulary_that_does_not_fit_is_refused(world, vocab_size):
    with pytest.raises(UserError, match=f"ids up to 65529.*a model of {vocab_size} tokens"):
        check_vocabulary(world, vocab_size)


def test_a_vocabulary_that_was_named_or_found_must_fit(tmp_path):
    own = write_vocabulary(tmp_path, SMALL)
    for files, given in (([own], None), ([], own), ([], tmp_path)):
        with pytest.raises(UserError, match="ids up to 8.*does not fit.*--tokenizer PATH"):
            find_vocabulary(checkpoint(*files), config(65536), given)


@pytest.mark.parametrize("vocab_size", [65530, 65536, 65530 + 127])
def test_a_head_may_be_padded(world, vocab_size):
    check_vocabulary(world, vocab_size)


def test_a_named_vocabulary_may_have_any_name(tmp_path):
    named = write_vocabulary(tmp_path, SMALL, "words")
    assert find_vocabulary(checkpoint(), config(9), given=named) == [named]
    assert write_tokenizer_files([named], tmp_path, 9) == ["rwkv_vocab.txt", "tokenizer_model"]


def test_a_folder_without_vocabulary_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    (tmp_path / "config.json").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="found config.json, notes.txt"):
        load_tokenizer(tmp_path)


# Files of an artifact


def test_world_files_of_an_artifact(world, tmp_path):
    names = write_tokenizer_files([WORLD], tmp_path, 65536)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names) == ["rwkv_vocab.txt", "tokenizer_model"]
    again = load_tokenizer([tmp_path / name for name in names])
    assert again.tokens == world.tokens

    packed = (tmp_path / "tokenizer_model").read_bytes()
    table = msgpack.unpackb(packed, strict_map_key=False)
    assert list(table) == list(range(65536))
    assert all(isinstance(text, bytes) and text for text in table.values())
    assert len(set(table.values())) == 65536
    assert table[0] == b"<|endoftext|>"
    assert table[261] == b"\n\n" and table[129] == b"\x80" and table[65535] == b"<|pad65535|>"
    assert b"\x01\xc4\x01\x00" in packed[:40]  # key 1, then a bin of one byte


def test_gaps_of_a_vocabulary_get_a_text_in_tokenizer_model(tmp_path):
    write_tokenizer_files([write_vocabulary(tmp_path, SMALL)], tmp_path, 12)
    table = msgpack.unpackb((tmp_path / "tokenizer_model").read_bytes(), strict_map_key=False)
    assert [table[i] for i in (3, 4, 11)] == [b"ab", b"<|pad4|>", b"<|pad11|>"]


def test_pile_files_of_an_artifact(pile, pile_path, tmp_path):
    assert write_tokenizer_files([pile_path], tmp_path, 401) == ["tokenizer.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert load_tokenizer(tmp_path).tokens == pile.tokens


def test_a_vocabulary_that_does_not_fit_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="does not fit"):
        write_tokenizer_files([WORLD], tmp_path, 50277)
    assert list(tmp_path.iterdir()) == []


def test_running_needs_no_training_framework():
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'rwkv'):\n"
        "    sys.modules[name] = None\n"
        "import rwkv_mlc.tokenizer, rwkv_mlc.engine.sampler, rwkv_mlc.engine.stream, rwkv_mlc.engine.templates\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
