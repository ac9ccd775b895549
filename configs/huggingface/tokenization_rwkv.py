"""RWKV's tokenizer on bytes: at every place of a text the longest token, of which some are parts of characters."""

import ast
import shutil
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizer

END_OF_TEXT = "<|endoftext|>"


class RwkvTokenizer(PreTrainedTokenizer):
    """Tokens are named by their bytes in Latin-1, as bytes need not be characters: ``tokenizer.tokenize("ä")`` is ``["Ã¤"]``.

    Id 0, ``<|endoftext|>``, ends a text and pads; in a text these letters are letters, unless ``split_special_tokens=False``.
    ``encode_bytes`` and ``decode_bytes`` take and give any bytes; in a string ``surrogateescape`` stands for such that are no
    UTF-8."""

    vocab_files_names = {"vocab_file": "rwkv_vocab_v20230424.txt"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        errors="replace",
        **kwargs,
    ):
        self.vocab_file, self.errors = str(vocab_file), errors
        self.bytes_of: dict[int, bytes] = {}
        for line in Path(vocab_file).read_text(encoding="utf-8").rstrip("\n").split("\n"):
            number, rest = line.split(" ", 1)
            token = ast.literal_eval(rest.rpartition(" ")[0])
            self.bytes_of[int(number)] = token.encode("utf-8") if isinstance(token, str) else token
        self.id_of = {token: number for number, token in self.bytes_of.items()}
        lengths: dict[bytes, set[int]] = {}
        for token in self.id_of:
            lengths.setdefault(token[:2], {1}).add(len(token))
        self.lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}
        kwargs = {"padding_side": "left", "split_special_tokens": True, "clean_up_tokenization_spaces": False} | kwargs
        super().__init__(bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, errors=errors, **kwargs)

    @property
    def vocab_size(self) -> int:
        return max(self.bytes_of) + 1

    def get_vocab(self) -> dict[str, int]:
        own = {token.decode("latin-1"): number for number, token in self.bytes_of.items()}
        return {END_OF_TEXT: 0} | own | self.added_tokens_encoder

    def encode_bytes(self, data: bytes) -> list[int]:
        """Raises ValueError for a byte that the vocabulary does not have."""
        ids, start = [], 0
        while start < len(data):
            for length in self.lengths.get(data[start : start + 2], (1,)):
                number = self.id_of.get(data[start : start + length])
                if number is not None:
                    break
            else:
                raise ValueError(f"The vocabulary has no token for byte 0x{data[start]:02x} at position {start}.")
            ids.append(number)
            start += length
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Without what stands for no bytes: id 0, and the rows of a model above its vocabulary."""
        return b"".join(self.bytes_of.get(int(number), b"") for number in ids)

    def tokenize(self, text: str, **kwargs) -> list[str]:
        if kwargs.pop("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        return super().tokenize(text, split_special_tokens=False, **kwargs)

    def _tokenize(self, text: str, **_) -> list[str]:
        ids = self.encode_bytes(text.encode("utf-8", "surrogateescape"))
        return [self.bytes_of[number].decode("latin-1") for number in ids]

    def _convert_token_to_id(self, token: str) -> int | None:
        if token == END_OF_TEXT:
            return 0
        try:
            return self.id_of.get(token.encode("latin-1"))
        except UnicodeEncodeError:
            return None

    def _convert_id_to_token(self, index: int) -> str:
        return self.bytes_of.get(index, b"").decode("latin-1") if index else END_OF_TEXT

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        data = (token.encode("utf-8" if token in self.added_tokens_encoder else "latin-1") for token in tokens)
        return b"".join(data).decode("utf-8", self.errors)

    def _decode(self, token_ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces=None, **_) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens))

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None) -> list[int]:
        return list(token_ids_0) + list(token_ids_1 or [])

    def create_token_type_ids_from_sequences(self, token_ids_0, token_ids_1=None) -> list[int]:
        return [0] * (len(token_ids_0) + len(token_ids_1 or []))

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False) -> list[int]:
        return [int(number == 0) for number in (*token_ids_0, *(token_ids_1 or []))]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / f"{name}{self.vocab_files_names['vocab_file']}"
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
