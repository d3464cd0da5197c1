"""Which pairs a rater sees, in which order, and which video is on which side.

The one thing to know: orders are rows of a Williams square (Williams 1949), in which
every pair stands once at every place and follows every other pair equally often. Rows
are dealt to raters so that the design is close to balanced whenever raters stop coming,
and exactly balanced after each full square.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

SIDES = ("A", "B")


class Showing(NamedTuple):
    """A pair as one rater sees it once.

    Attributes:
        item: index of the pair.
        kind: `training`, `trial`, `repeat` or `control`.
        left: which of the pair's videos is on the left, `A` or `B`.
    """

    item: int
    kind: str
    left: str


def cycle(count: int, partners: int) -> list[tuple[int, int]]:
    """Pairs things so that every one has as many partners and all are connected.

    Args:
        count: of things; all pairs are made when there are few.
        partners: of each thing, an even number.

    Returns:
        Pairs of indices, the smaller one first. More than `partners + 1` things stand
        in a circle, and each is paired with those at fixed distances (a cyclic design,
        David 1963); distances grow by a factor, so that any two things are a few
        comparisons apart.
    """
    if count <= partners + 1:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    steps = partners // 2
    distances = {round((count / 2) ** (k / steps)) for k in range(steps)}
    unused = (d for d in range(1, count) if d not in distances)
    while len(distances) < steps:
        distances.add(next(unused))
    found = {
        (min(i, j), max(i, j))
        for d in distances
        for i in range(count)
        for j in [(i + d) % count]
    }
    return sorted(found)


def groups(edges: Sequence[tuple[str, str]]) -> list[set[str]]:
    """Returns the sets of names that pairs connect, the largest first."""
    found: list[set[str]] = []
    for edge in edges:
        touched = [group for group in found if group & set(edge)]
        found = [group for group in found if group not in touched]
        found.append(set(edge).union(*touched))
    return sorted(found, key=lambda group: (-len(group), min(group)))


def williams(count: int) -> Int[np.ndarray, "R N"]:
    """Makes a square in which each thing follows each other one equally often.

    Args:
        count: of things.

    Returns:
        Orders of the numbers from 0 on, one a row: `count` rows, or twice as many when
        `count` is odd, the second half being the first one backwards.
    """
    steps = np.arange(count)
    first = np.where(steps % 2, (steps + 1) // 2, -steps // 2)
    square = (first[None] + np.arange(count)[:, None]) % count
    return square if count % 2 == 0 else np.concatenate([square, square[:, ::-1]])


def rows(
    square: Int[np.ndarray, "R N"], *, shown: int, raters: int
) -> Int[np.ndarray, "raters shown"]:
    """Deals rows of a square to raters.

    Args:
        square: from `williams`.
        shown: how many things of its row each rater sees, from the first on.
        raters: how many rows to deal. Rows come again when all have been dealt.

    Returns:
        Orders, one a rater. Each next row is the one whose things were seen least
        often so far, and least often in the same half of a session.
    """
    orders = square[:, :shown]
    half = np.arange(shown) * 2 // shown
    seen = np.zeros((square.shape[1], 2), int)
    dealt, free = [], np.ones(len(orders), bool)
    for _ in range(raters):
        cost = seen.sum(axis=-1)[orders].sum(axis=-1) + seen[orders, half].sum(axis=-1)
        row = int(np.argmin(np.where(free, cost, np.iinfo(int).max)))
        seen[orders[row], half] += 1
        dealt.append(orders[row])
        free[row] = False
        if not free.any():
            free[:] = True
    return np.array(dealt)


def sides(
    items: Sequence[int], lead: Int[np.ndarray, " N"], rng: np.random.Generator
) -> list[str]:
    """Chooses which video of each pair is on the left for the next rater.

    Args:
        items: that the rater sees.
        lead: of each item, how much more often `A` was on the left so far than `B`;
            changed to include this rater.
        rng: decides what balance leaves open.

    Returns:
        `A` or `B` for each item: the video that was on the left less often, and where
        both were equally often, what makes the rater's own balance even.
    """
    chosen = {item: -np.sign(lead[item]) for item in items}
    free = rng.permutation([item for item in items if lead[item] == 0])
    for item in free:
        balance = sum(chosen.values())
        chosen[item] = -np.sign(balance) or rng.choice([-1, 1])
    for item in items:
        lead[item] += chosen[item]
    return [SIDES[0] if chosen[item] > 0 else SIDES[1] for item in items]


def orders(
    *,
    training: Sequence[int],
    trials: Sequence[int],
    controls: Sequence[int],
    raters: int,
    shown: int,
    repeats: int,
    shown_controls: int,
    seed: int,
) -> list[list[Showing]]:
    """Makes the sessions of all raters.

    Args:
        training: items that all raters see first, in this order.
        trials: items to compare.
        controls: items with one clip on both sides, dealt to raters in turn.
        raters: how many.
        shown: trials a rater sees, at most as many as there are.
        repeats: how many trials of the first half a rater sees again, with sides
            swapped and half of the trials later; at most `shown // 2`.
        shown_controls: how many controls a rater sees, spread over the session.
        seed: of all that balance leaves open.

    Returns:
        What each rater sees, in order.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(np.array(trials, int))
    control_items = rng.permutation(np.array(controls, int))
    dealt = drawn[rows(williams(len(drawn)), shown=shown, raters=raters)]
    lead = np.zeros(1 + max([*training, *trials, *controls]), int)
    result = []
    for rater, order in enumerate(dealt):
        first = [
            Showing(item, "training", side)
            for item, side in zip(training, sides(training, lead, rng), strict=True)
        ]
        left = sides([int(item) for item in order], lead, rng)
        placed = [
            (float(place), Showing(int(item), "trial", side))
            for place, (item, side) in enumerate(zip(order, left, strict=True))
        ]
        for k in range(repeats):
            place = math.floor((k + 0.5) * (shown // 2) / repeats)
            again = placed[place][1]
            swapped = SIDES[again.left == SIDES[0]]
            placed.append(
                (place + shown // 2 + 0.5, Showing(again.item, "repeat", swapped))
            )
        for k in range(shown_controls):
            item = control_items[(rater * shown_controls + k) % len(control_items)]
            place = (k + 1) * shown / (shown_controls + 1) - 0.25
            placed.append((place, Showing(int(item), "control", SIDES[0])))
        result.append(first + [showing for _, showing in sorted(placed)])
    return result
