"""Which format each layer gets under a budget, when what the layers lose adds up (catalogue B17)."""

from __future__ import annotations

import numpy as np


def pareto_front(costs: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All choices of one option a layer that no other choice beats in both total size and total cost.

    Args:
        costs: [layers, options], finite: what layer i loses by option k, such as a divergence of the outputs.
        sizes: [layers, options], int: what it takes then, such as bits.

    Returns:
        (sizes [points], ascending; costs [points], descending; choices [points, layers] int).

    ZeroQ's Pareto frontier (Cai et al. 2020, arXiv:2001.00281, section 3.2), exact: layers are added one by one, and
    of the combinations so far only those survive that no other beats, whatever comes after.

    Raises:
        ValueError: arrays of other shapes, sizes that are no integers, or costs that are not finite.

    >>> sizes, costs, choices = pareto_front(np.array([[0.0, 5.0], [0.0, 1.0]]), np.array([[8, 4], [8, 4]]))
    >>> sizes.tolist(), costs.tolist(), choices.tolist()
    ([8, 12, 16], [6.0, 1.0, 0.0], [[1, 1], [0, 1], [0, 0]])
    """
    costs, sizes = np.asarray(costs, np.float64), np.asarray(sizes)
    if costs.ndim != 2 or costs.shape != sizes.shape or not costs.size:
        raise ValueError(f"pareto_front: costs {costs.shape} and sizes {sizes.shape}; give [layers, options] twice")
    if not np.issubdtype(sizes.dtype, np.integer) or not np.all(np.isfinite(costs)):
        raise ValueError("pareto_front: sizes must be integers and costs finite")
    size, cost = np.zeros(1, np.int64), np.zeros(1)
    came, took = [], []
    for layer_costs, layer_sizes in zip(costs, sizes, strict=True):
        all_sizes, all_costs = (size[:, None] + layer_sizes).ravel(), (cost[:, None] + layer_costs).ravel()
        order = np.lexsort((all_costs, all_sizes))
        least = np.minimum.accumulate(all_costs[order])
        kept = order[np.concatenate([[True], least[1:] < least[:-1]])]
        size, cost = all_sizes[kept], all_costs[kept]
        before, option = np.divmod(kept, costs.shape[1])
        came.append(before)
        took.append(option)
    at, choices = np.arange(len(size)), []
    for before, option in zip(reversed(came), reversed(took), strict=True):
        choices.append(option[at])
        at = before[at]
    return size, cost, np.stack(choices[::-1], axis=1)


def least_cost(costs: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
    """The choice [layers] int of least total cost whose total size is within the budget.

    Raises:
        ValueError: a budget below the least size there is; and as `pareto_front`.

    >>> least_cost(np.array([[0.0, 5.0], [0.0, 1.0]]), np.array([[8, 4], [8, 4]]), budget=13).tolist()
    [0, 1]
    """
    total, _, choices = pareto_front(costs, sizes)
    within = np.searchsorted(total, budget, side="right")
    if not within:
        raise ValueError(f"least_cost: no choice is within {budget}, the least is {total[0]}")
    return choices[within - 1]
