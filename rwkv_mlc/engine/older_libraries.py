"""Libraries that were built before they said all of their states, functions and parameters."""

from __future__ import annotations

from ..quantization.schemes import get_scheme
from ..schema import NATIVE, LibraryMetadata, StateSpec


def described(metadata: LibraryMetadata) -> LibraryMetadata:
    """The metadata with states, functions and the shapes in which parameters are stored: an older library has those of its
    model's generation and of the native interface, which are asked for here and for no other library. Raises UserError for
    an unknown generation or scheme."""
    if metadata.functions:
        return metadata
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
