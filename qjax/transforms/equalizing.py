"""Cross-layer equalization as a transform of a whole network."""

from __future__ import annotations

import jax

from qjax.equivalence import equalize_ranges
from qjax.transforms.contract import Edit, Stage, Transform, stateless


def equalize(rounds: int = 20) -> Transform:
    """Make the ranges of the channels between two layers equal on both sides, in the weights, without data.

    Up and down of a (gated) product and v and o of attention, as the topology lists them; the function stays. Comes
    before every method that quantizes.

    Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.1; `qjax.equivalence.equalize_ranges`. Catalogue B16, B24.

    Raises:
        ValueError: fewer than one round; a model whose wiring is unknown; a layer that is quantized already.
    """
    if rounds < 1:
        raise ValueError(f"equalize: {rounds} rounds; give at least one")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        if stage.topology is None:
            raise ValueError(
                "equalize: which layer follows which is not known of this function; give run(topology=Topology(...))"
            )
        new = equalize_ranges(stage.params, stage.uses, stage.topology, rounds)
        return Edit(rewritten=new, rows={path: {} for path in stage.targets if path in new})

    return stateless("equalize", "model", edit)
