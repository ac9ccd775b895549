"""Libraries that were built before they said all of their states, functions and parameters."""

from __future__ import annotations

from collections import Counter

from ..config import RWKVConfig
from ..errors import UserError
from ..quantization.schemes import get_scheme
from ..schema import NATIVE, FunctionSpec, LibraryMetadata, StateSpec


def described(metadata: LibraryMetadata) -> LibraryMetadata:
    """The metadata with states, functions and the shapes in which parameters are stored: an older library has those of its
    model's generation and of the native interface, which are asked for here and for no other library; and with what calls
    allocate, roughly. Raises UserError for an unknown generation or scheme, and for a model without heads that should have
    some."""
    metadata = metadata if metadata.functions else _of_generation(metadata)
    specs = {
        name: spec if spec.memory is not None else spec.model_copy(update={"memory": _estimated(spec, metadata.config)})
        for name, spec in metadata.functions.items()
    }
    return metadata.model_copy(update={"functions": specs})


def _estimated(spec: FunctionSpec, config: RWKVConfig) -> dict[str, int]:
    """For every token so many float32 vectors of the model's width and of its hidden layer's, and every row of logits."""
    if "states" not in spec.arguments:
        return {}
    first, *_ = (argument for argument in spec.arguments if not isinstance(argument, str))
    (tokens,), (_, results, _) = first.shape, spec.result.shape
    vectors, hidden = (14, 1) if tokens == "T" else (20, 3)  # single tokens are also there as integers
    row = 4 * (vectors * config.hidden_size + hidden * config.intermediate_size)
    return dict(Counter({str(tokens): row}) + Counter({str(results): 4 * config.vocab_size}))


def _of_generation(metadata: LibraryMetadata) -> LibraryMetadata:
    from ..interfaces import INTERFACES
    from ..models import generation_of

    config, scheme = metadata.config, get_scheme(metadata.quantization)
    generation, layers = generation_of(config), range(config.num_hidden_layers)
    shapes = {
        name: shape
        for parameter in generation.parameters(config)
        for name, (shape, _) in scheme.stored(parameter).items()
    }
    states = generation.states(config)
    if any(min(state.shape) < 1 for state in states):
        raise UserError(
            f"The library says that its model has heads of {config.head_size} channels and {config.attention_size} channels in "
            "all, which leaves no head; build it again."
        )
    return metadata.model_copy(
        update={
            "params": tuple(
                spec.model_copy(update={"stored_shape": shapes.get(spec.name)}) for spec in metadata.params
            ),
            "states": tuple(
                StateSpec(layer=layer, role=state.role, shape=state.shape, initial=state.initial)
                for layer in layers
                for state in states
            ),
            "functions": INTERFACES[NATIVE].functions(config),
        }
    )
