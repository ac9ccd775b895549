"""An artifact on disk, read and checked."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from ..escaping import listed, listed_problems, shortened
from ..quantization.schemes import Scheme, get_scheme
from ..regular_files import check_inside, check_name
from ..schema import ChatConfig, LibraryRecord
from ..typed_json import read
from .disk import digest
from .finding import no_artifact
from .initial_state import AGAIN, read_initial_state
from .names import CHAT_CONFIG, PARAMS, TENSOR_INDEX
from .record import BuildRecord
from .shards import Shard, StoredTensor, read_index, verify

if TYPE_CHECKING:
    from ..models import Parameter


@dataclasses.dataclass(frozen=True)
class Artifact:
    """What ``dist/<model>-<quantization>/`` holds; ``Artifact.open`` reads one."""

    path: Path
    scheme: Scheme
    chat_config: ChatConfig
    tokenizer_files: list[Path]
    shards: list[Shard]

    @classmethod
    def open(cls, path: Path | str) -> Artifact:
        """The artifact in a folder, or around a ``params`` folder.

        Raises UserError when the folder is no artifact, and for a damaged, missing or unknown part of one; checksums
        are computed at the first opening and remembered in a small file beside the shards."""
        path = Path(path)
        try:
            check_name(path)
        except OSError as error:
            raise UserError(
                f"{shortened(str(path))} is no path ({error.strerror}); name an artifact's folder."
            ) from None
        if path.name == PARAMS and (path / CHAT_CONFIG).is_file():
            path = path.resolve().parent
        params = path / PARAMS
        if not (params / CHAT_CONFIG).is_file() and not (params / TENSOR_INDEX).is_file():
            raise no_artifact(path)
        chat_config = read(ChatConfig, params / CHAT_CONFIG, "write it again with rwkv-mlc gen-config", inside=params)
        scheme = get_scheme(chat_config.quantization)
        tokenizer_files = [params / name for name in chat_config.tokenizer_files]
        for file in tokenizer_files:
            try:
                check_inside(file, params)
            except FileNotFoundError:
                raise UserError(
                    f"The artifact lacks its tokenizer {file}; write it again with rwkv-mlc gen-config."
                ) from None
            except OSError as error:
                raise UserError(
                    f"The tokenizer {file} cannot be read ({error.strerror}); write it again with rwkv-mlc gen-config."
                ) from None
        if state := chat_config.initial_state:
            try:
                check_inside(params / state.file, params)
            except OSError as error:
                raise UserError(
                    f"The initial state {params / state.file} cannot be read ({error.strerror}); {AGAIN}."
                ) from None
        shards = read_index(params)
        layers, stored = chat_config.config.num_hidden_layers, sum(len(shard.tensors) for shard in shards)
        if layers > stored:
            raise UserError(
                f"{params / CHAT_CONFIG} says that the model has {layers} layers, and {TENSOR_INDEX} lists {stored} "
                "tensors; build the artifact again."
            )
        verify(params, shards)
        return cls(path, scheme, chat_config, tokenizer_files, shards)

    @property
    def config(self) -> RWKVConfig:
        return self.chat_config.config

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def record(self) -> BuildRecord:
        """Raises UserError when the build record is missing or damaged."""
        return BuildRecord.read(self.path)

    @property
    def model_parameters(self) -> list[Parameter]:
        """The model's parameters, in the order in which the compiled functions take what is stored of them."""
        from ..models import generation_of

        return generation_of(self.config).parameters(self.config)

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """What the shards hold, by stored name, in the order of the index; a library's ``params`` say which it takes."""
        return {name: tensor for shard in self.shards for name, tensor in shard.tensors.items()}

    def tensors(self) -> dict[str, StoredTensor]:
        """``stored_tensors``, checked against the model and in the order of ``model_parameters``.

        Raises one UserError that lists every tensor that is missing, surplus or not of the scheme's shape and dtype."""
        found = self.stored_tensors()
        expected = {name: form for p in self.model_parameters for name, form in self.scheme.stored(p).items()}
        problems = [f"missing {name}" for name in expected if name not in found]
        problems += [f"unknown {name}" for name in found if name not in expected]
        for name, (shape, dtype) in expected.items():
            if name in found and (found[name].shape, found[name].dtype) != (shape, dtype):
                tensor = found[name]
                problems.append(f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")
        if problems:
            raise UserError(
                f"The parameters in {self.path / PARAMS} do not fit their configuration, {len(problems)} tensors are "
                f"wrong: {listed_problems(problems)}; build the artifact again."
            )
        return {name: found[name] for name in expected}

    def parameters(self) -> dict[str, np.ndarray]:
        """``tensors`` as read-only views on the mapped shards. Raises UserError as that does."""
        mapped = {name: array for shard in self.shards for name, array in shard.arrays().items()}
        return {name: mapped[name] for name in self.tensors()}

    def dequantized_parameters(self) -> dict[str, np.ndarray]:
        """Float32 parameters, matrices [out, in], by ``Parameter.name``: what the compiled model computes with."""
        stored = self.parameters()
        return {p.name: self.scheme.dequantize(p, stored) for p in self.model_parameters}

    def initial_state(self) -> dict[str, np.ndarray]:
        """The states whose elements before the first token are not the library's constant, float32 [*shape] by
        ``StateSpec.name``. Raises UserError for a damaged file."""
        state = self.chat_config.initial_state
        return read_initial_state(self.path / PARAMS / state.file, state) if state else {}

    def libraries(self) -> dict[str, LibraryRecord]:
        """Every library in the build record by its target's name."""
        return self.record.libraries

    def library(self, target_name: str) -> LibraryRecord:
        """The library for a target. Raises UserError when there is none, or when its file is missing or changed."""
        libraries = self.libraries()
        command = f"rwkv-mlc compile {self.path} --target {target_name}"
        if target_name not in libraries:
            available = listed(libraries) or "none"
            raise UserError(f"{self.path} has no library for {target_name} (available: {available}); run {command}.")
        library = libraries[target_name]
        try:
            check_inside(library.path, self.path)
            found = digest(library.path, "sha256")
        except FileNotFoundError:
            raise UserError(f"The library {library.path} is missing; run {command}.") from None
        except OSError as error:
            raise UserError(f"The library {library.path} cannot be read ({error.strerror}); run {command}.") from None
        if found != library.sha256:
            raise UserError(f"The library {library.path} is damaged: its checksum differs; run {command}.")
        return library
