"""What the building commands print and show while they work."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..building import events
from ..building.precision import WideValue
from ..config import RWKVConfig
from ..escaping import escaped
from ..schema import ROUNDED
from ..weights.checkpoint import Checkpoint
from .faults import say
from .tables import Table, console, size

QUIET_SECONDS = 10.0  # after which a pipe hears how far the weights are


class Printer:
    """An observer that prints a line for every step, at once, and shows a bar or a spinner until the next one; to be used in a
    ``with`` statement, which takes away what is still shown."""

    def __init__(self, from_hub: bool = False) -> None:
        self.from_hub = from_hub
        self._shown = ExitStack()

    def __enter__(self) -> Printer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.close()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.TensorStored(number, total, name, _):
                self._saved(number, total, name)
            case _:
                self._shown.close()
                self._step(event)
                self._spoke = time.monotonic()
        sys.stdout.flush()

    def _step(self, event: events.Event) -> None:
        match event:
            case events.TargetChosen(target):
                say(f"Target configured: {target.tvm}")
            case events.SourceOpened(source):
                self._source(source.checkpoint, source.config)
                self._spin("Looking at what is there already...")
            case events.WideValuesSought():
                print("Start looking for values that float16 does not hold... This may take a while.")
                self._spin("Reading a text...")
            case events.WideValuesFound(values):
                _print_precision(values)
            case events.ParametersReused(folder):
                say(f"Reuse parameters in {folder}. You can use --use-cache=0 to convert them again")
            case events.ConversionStarted(folder, tensors):
                print("Start computing and quantizing weights... This may take a while.")
                say(f"Start storing to cache {folder}")
                self._show_bar(tensors)
            case events.ConversionFinished(conversion, index):
                print("Finish computing and quantizing weights.")
                bits = 8 * conversion.nbytes / conversion.parameters
                say(f"Total param size: {size(conversion.nbytes)}, {bits:.2f} bits each")
                say(f"All finished, {conversion.shards} total shards committed, record saved to {index}")
            case events.ConfigWritten(file):
                say(f"Finish exporting chat config to {file}")
            case events.CompilationStarted(target):
                say(f"Start compiling for {target.name}... This may take a while.")
                self._spin("Compiling...")
            case events.ArchitectureCompiled(number, total, name):
                say(f"[{number}/{total}] compiled for {name}")
                self._spin(
                    f"Compiling for the other {total - number} architectures..." if number < total else "Linking..."
                )
            case events.CompilationFinished(library, dumps):
                for file in dumps:
                    say(f"Dump mod to {file}")
                if library.prefill_activations in ROUNDED:
                    print(
                        f"Prompts are read with {library.prefill_activations} activations. You can use rwkv-mlc bench to see "
                        "the error"
                    )
            case events.LeftOutOfLibrary(reason):
                say(f"Leave out mlc_llm's functions, with which it cannot run this model: {reason}")
            case events.LibraryReused(prebuilt):
                say(f"Reuse existing prebuilt lib {prebuilt}...")
            case events.LibraryWritten(file):
                say(f"Finish exporting to {file}")
            case events.BuildFinished(artifact):
                say(f"Finish building {artifact}")
            case _:
                raise TypeError(f"no line for {event!r}")

    def _source(self, checkpoint: Checkpoint, config: RWKVConfig) -> None:
        if self.from_hub:
            say(f"Weights exist at {checkpoint.files[0].parent}")
        shape = f"RWKV-{config.generation}, {config.num_hidden_layers} layers of {config.hidden_size}"
        say(f'Using path "{checkpoint.source}" for model "{checkpoint.name}": {shape}')
        if checkpoint.warning:
            print(f"Warning: {checkpoint.warning}", file=sys.stderr)
        if lora := checkpoint.lora:
            replaced = f", {lora.whole} tensors replaced" if lora.whole else ""
            say(f"Merging {lora.file} with alpha {lora.alpha:g}: {lora.matrices} matrices changed{replaced}")

    def _spin(self, text: str) -> None:
        self._shown.enter_context(Console(stderr=True).status(text))

    def _show_bar(self, tensors: int) -> None:
        """A bar over the stored tensors."""
        count = TextColumn("[{task.completed:04d}/{task.total:04d}]", markup=False)
        name = TextColumn("{task.description}", markup=False)
        self._bar = self._shown.enter_context(Progress(count, BarColumn(), TimeElapsedColumn(), name))
        self._task = self._bar.add_task("reading the checkpoint", total=tensors)

    def _saved(self, number: int, total: int, name: str) -> None:
        self._bar.update(self._task, completed=number, description=f"saving {escaped(name)}")
        if not sys.stdout.isatty() and time.monotonic() - self._spoke > QUIET_SECONDS:
            say(f"[{number:04d}/{total:04d}] saving {name}")
            self._spoke = time.monotonic()


def _print_precision(values: list[WideValue]) -> None:
    """A table of what is kept in float32, and why."""
    if not values:
        print("Auto precision: every value fits")
        return
    table = Table("value", "largest magnitude", "float16", title="Auto precision: kept in float32")
    for value in values:
        table.add_row(value.name, f"{value.largest:.4g}", "overflows" if value.overflows else "comes near")
    console().print(table)
