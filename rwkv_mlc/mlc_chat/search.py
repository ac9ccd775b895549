"""Where mlc_chat looks for a model and for its library."""

from __future__ import annotations

from pathlib import Path

from ..artifact import CHAT_CONFIG, PARAMS, Artifact
from ..artifact.finding import ARTIFACTS, no_artifact
from ..engine.devices import check_name, device_of, target_of
from ..errors import UserError
from ..escaping import listed, shortened
from ..regular_files import check_name as check_path


class NotFound(UserError, FileNotFoundError):
    """What mlc_chat raises FileNotFoundError for."""


def find_model(model: str) -> Path:
    """The first of mlc_chat's folders for ``model``, a name or a path, that has an ``mlc-chat-config.json``, in it or
    in its ``params``: as it is, below ``dist/prebuilt``, ``dist/<model>/params``, and ``mlc-chat-<model>`` below
    ``dist/prebuilt``.

    Raises NotFound where none has."""
    try:
        check_path(Path(model))
    except OSError as error:
        raise NotFound(f"{shortened(model)} is no path ({error.strerror}); name a model or its folder.") from None
    prebuilt = ARTIFACTS / "prebuilt"
    folders = [Path(model), prebuilt / model, ARTIFACTS / model / PARAMS, prebuilt / f"mlc-chat-{model}"]
    for folder in folders:
        if (folder / CHAT_CONFIG).is_file() or (folder / PARAMS / CHAT_CONFIG).is_file():
            return folder
    if there := [folder for folder in folders if folder.is_dir()]:
        raise NotFound(
            f"The model folder provided does not seem to refer to a valid model folder: there is no {CHAT_CONFIG} in "
            f"{listed(list(map(str, there)))}. {no_artifact(there[0])}"
        )
    raise NotFound(
        f"Cannot find the model folder. We searched over the following possible paths: {listed(list(map(str, folders)))}. "
        f"{no_artifact(ARTIFACTS / model)}"
    )


def device_for_library(folder: Path, device: str, library: str | Path | None) -> str:
    """The device to run on where ``library`` is to be taken, ``device`` where that is None.

    Raises NotFound where the path is no file, and UserError for a library that is not among the artifact's, whose
    hashes are not known, and for one that does not run on ``device``."""
    check_name(device)
    if library is None:
        return device
    if not Path(library).is_file():
        raise NotFound(f"The `model_lib_path` you passed in is not a file: {library}; leave it out, or name a library.")
    libraries = Artifact.open(folder).libraries()
    targets = [name for name, record in libraries.items() if record.path.exists() and record.path.samefile(library)]
    if not targets:
        known = listed([str(record.path) for record in libraries.values()]) or "none"
        raise UserError(
            f"{library} is not among the libraries of {folder} ({known}), and only those of which its build record has the "
            "hash are loaded; add it with rwkv-mlc build --reuse-lib."
        )
    own = device_of(targets[0])
    if device != "auto" and target_of(device) != targets[0]:
        raise UserError(f"{library} runs on {own}, not on {device}; leave one of the two out.")
    return own if device == "auto" else device
