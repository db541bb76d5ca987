"""Evolutionary search over one choice a layer (catalogue B15)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np


def evolve(
    score: Callable[[np.ndarray], float],
    layers: int,
    options: int,
    key: jax.Array,
    *,
    generations: int = 20,
    population: int = 45,
    parents: int = 10,
    mutated: int = 15,
    crossed: int = 15,
    rate: float = 0.1,
) -> tuple[np.ndarray, float]:
    """The choice [layers] int in 0..options-1 of least score that the search saw, and its score.

    Begins with a random population. In each generation the best `parents` of all seen so far have children: `mutated`
    ones, where each layer is drawn anew with probability `rate`, and `crossed` ones, which take each layer from one of
    two parents; random ones fill up the population. No choice is scored twice, and of equal ones the earlier is better.
    The defaults are those of BASQ's code (Kim et al. 2022), whose search is that of single path one-shot architectures
    (Guo et al. 2020, arXiv:1904.00420, algorithm 1).

    Args:
        score: what is to be small, such as the error on held-out data with a branch chosen for each layer.
        layers: the length of a choice.
        options: what each layer has to choose from.
        key: for all draws.
        generations: after the first population.
        population: choices scored in a generation.
        parents: the best so far, from which children come.
        mutated: children of one parent.
        crossed: children of two.
        rate: how probable it is that a mutation draws a layer anew.

    Raises:
        ValueError: sizes that are not positive, or children that are more than the population.

    >>> evolve(lambda c: float(np.sum((c - np.array([2, 0, 1])) ** 2)), layers=3, options=4, key=jax.random.key(0))[0]
    array([2, 0, 1])
    """
    if min(layers, options, population, parents) < 1 or mutated + crossed > population:
        raise ValueError(
            f"evolve: {layers} layers, {options} options, {parents} parents, {mutated} + {crossed} children in a "
            f"population of {population}; give positive sizes and at most as many children"
        )
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    seen: dict[tuple[int, ...], float] = {}

    def random() -> np.ndarray:
        return draw.integers(0, options, layers)

    def new(make: Callable[[], np.ndarray], count: int) -> None:
        """Score `count` choices not seen before; small spaces run out of them, hence the tries."""
        left = count
        for _ in range(10 * count):
            choice = make()
            if left and tuple(choice.tolist()) not in seen:
                seen[tuple(choice.tolist())] = float(score(choice))
                left -= 1

    new(random, population)
    for _ in range(generations):
        best = np.array(sorted(seen, key=seen.__getitem__)[:parents])

        def parent(best: np.ndarray = best) -> np.ndarray:
            return best[draw.integers(len(best))]

        new(lambda parent=parent: np.where(draw.random(layers) < rate, random(), parent()), mutated)
        new(lambda parent=parent: np.where(draw.random(layers) < 0.5, parent(), parent()), crossed)
        new(random, population - mutated - crossed)
    least = min(seen, key=seen.__getitem__)
    return np.array(least), seen[least]
