"""Libraries that were built before they described their states and functions."""

from __future__ import annotations

from ..schema import LibraryMetadata, StateSpec


def described(metadata: LibraryMetadata) -> LibraryMetadata:
    """The metadata with states and functions: an older library has those of its model's generation and of the native
    interface, which are asked for here and for no other library. Raises UserError for an unknown generation."""
    if metadata.functions:
        return metadata
    from ..interfaces import INTERFACES
    from ..models import generation_of

    config = metadata.config
    layers, states = range(config.num_hidden_layers), generation_of(config).states(config)
    return metadata.model_copy(
        update={
            "states": tuple(
                StateSpec(layer=layer, role=state.role, shape=state.shape, initial=state.initial)
                for layer in layers
                for state in states
            ),
            "functions": INTERFACES["native"].functions(config),
        }
    )
