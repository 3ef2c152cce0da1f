"""Mean and spread of runs: over the seeds of a category, and over categories as the paper does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from destseg_bench.accuracy.measure import MeasuredRun

Value = Callable[[MeasuredRun], float | None]
"""One number of a run, in [0, 1]; None where it cannot be measured."""


@dataclass(frozen=True)
class Statistic:
    """Mean and spread of a metric.

    Attributes:
        mean: In [0, 1].
        std: Sample standard deviation (n - 1); None if there is one value.
        count: Number of values.
    """

    mean: float
    std: float | None
    count: int

    def __str__(self) -> str:
        """Return per cent with one decimal, as the paper prints them."""
        spread = "" if self.std is None else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Average:
    """A metric averaged over categories, seed by seed.

    Attributes:
        value: Mean and spread of the seeds' averages.
        categories: The categories averaged over: those that every seed has.
        seeds: The seeds.
    """

    value: Statistic
    categories: tuple[str, ...]
    seeds: tuple[int, ...]


def of(metric: str) -> Value:
    """Return the function that reads one of ``measure.METRICS`` from a run."""
    return lambda one: one.value(metric)


def statistic(values: Sequence[float]) -> Statistic:
    """Return mean and sample standard deviation of at least one value."""
    return Statistic(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def over_seeds(measured: Iterable[MeasuredRun], category: str, value: Value) -> Statistic | None:
    """Return a category's mean over its seeds; None where nothing was measured."""
    found = [value(one) for one in measured if one.category == category]
    known = [number for number in found if number is not None]
    return statistic(known) if known else None


def over_categories(
    measured: Iterable[MeasuredRun], categories: Sequence[str], value: Value
) -> Average | None:
    """Average over categories for each seed, then take mean and spread over the seeds.

    Args:
        measured: Runs, at most one of each category and seed.
        categories: Which may count, in this order. A category that lacks a seed of the others is
            left out, or the seeds' averages would not be of the same categories.
        value: What is averaged.

    Returns:
        The average; None where no category has every seed.
    """
    values = {
        (one.category, one.seed): number
        for one in measured
        if one.category in categories and (number := value(one)) is not None
    }
    seeds = sorted({seed for _, seed in values})
    whole = tuple(name for name in categories if all((name, seed) in values for seed in seeds))
    if not seeds or not whole:
        return None
    by_seed = [fmean(values[name, seed] for name in whole) for seed in seeds]
    return Average(statistic(by_seed), whole, tuple(seeds))
