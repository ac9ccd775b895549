"""Checkpoints from the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError

SIDE_FILES = ["*config.json", "tokenizer.json", "20B_tokenizer.json", "*vocab*.txt"]
WEIGHT_FILES = [
    ["*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
]
WHOLE_MODELS = [["model.safetensors", "model.safetensors.index.json"], ["pytorch_model*"]]
OTHER_FILES = (".safetensors", ".st", ".pth", ".gguf")
REPOSITORY = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*?)(?::(?P<file>[\w./-]+))?")


def is_repository(source: str) -> bool:
    """Whether ``source`` reads as ``owner/name`` or ``owner/name:file`` rather than as the path of a file."""
    match = REPOSITORY.fullmatch(source)
    return match is not None and not match["id"].endswith((".pth", ".pt", ".bin", ".safetensors", ".st", ".gguf"))


def model_name(source: str) -> str:
    """The ``name`` of ``owner/name`` or ``owner/name:file``."""
    return source.partition(":")[0].rpartition("/")[2]


def download(source: str, revision: str | None = None) -> Path:
    """Fetch ``owner/name`` or one file ``owner/name:file`` into the cache; return the folder or the file.

    Of a repository only the configuration, the vocabulary and one kind of weights are fetched: ``model.safetensors``, else
    ``pytorch_model``, else its only file in one of ``OTHER_FILES``. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read by
    huggingface_hub when it is first imported. Raises UserError when the hub, the repository or its weights cannot be had."""
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = REPOSITORY.fullmatch(source)
    assert match, source  # ``is_repository`` said so
    repository, file = match["id"], match["file"]
    hub = constants.ENDPOINT
    try:
        if file is not None:
            path = Path(hf_hub_download(repository, file, revision=revision))
            snapshot_download(repository, revision=revision, allow_patterns=SIDE_FILES, ignore_patterns="*/*")
            return path
        for patterns, whole in zip(WEIGHT_FILES, WHOLE_MODELS):
            wanted = SIDE_FILES + patterns
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns="*/*")
            )
            if any(path for pattern in whole for path in folder.glob(pattern)):
                return folder
        return Path(hf_hub_download(repository, _only_file(repository, revision, folder), revision=revision))
    except GatedRepoError:
        raise UserError(f"{repository} on {hub} is gated; accept its terms there and run `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"There is no file or folder {source} here and no repository {repository} on {hub}; check the spelling, or "
            "run `hf auth login` if it is private."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repository} on {hub} has no revision {revision}; check the spelling.") from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"There is no file or folder {source} here, {hub} cannot be reached, and {repository} is not in the cache "
            f"{constants.HF_HUB_CACHE}; check the path, or the network."
        ) from None
    except EntryNotFoundError:
        raise UserError(f"{repository} on {hub} has no file {file}; check the spelling.") from None
    except (HTTPError, OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{repository} could not be downloaded from {hub} ({reason}); try again later.") from None


def _only_file(repository: str, revision: str | None, folder: Path) -> str:
    """The repository's one file in one of ``OTHER_FILES``; where the hub cannot be reached, the one in the cached
    ``folder``."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:
        files = HfApi().list_repo_files(repository, revision=revision)
    except (HTTPError, OfflineModeIsEnabled):
        files = [path.name for path in folder.iterdir()]
    found = sorted(file for file in files if file.endswith(OTHER_FILES))
    if not found:
        raise UserError(f"{repository} holds no weights: expected safetensors, pytorch_model.bin or a .pth file.")
    if len(found) > 1:
        names = ", ".join(f"{repository}:{file}" for file in found)
        raise UserError(f"{repository} holds several checkpoints; name one of them: {names}.")
    return found[0]
