"""Random draws whose result is the same on every machine: everything comes from one generator's uniform doubles.

Stratified draws follow a table of quantiles exactly: `count` equally spaced probabilities, in a random order. What is
left to chance is the order, not how often a value comes.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Order = NDArray[np.intp]


def generator(seed: int, *stream: int) -> np.random.Generator:
    """One generator per seed and `stream`, independent of all others."""
    return np.random.Generator(np.random.PCG64([seed, *stream]))


def shuffled(rng: np.random.Generator, count: int) -> Order:
    return np.argsort(rng.random(count), kind="stable")


def middles(count: int) -> Floats:
    """The probabilities in the middle of `count` equal shares of 0..1."""
    return (np.arange(count) + 0.5) / count


def strata(rng: np.random.Generator, count: int) -> Floats:
    return middles(count)[shuffled(rng, count)]


def quantile(table: ArrayLike, probabilities: Floats) -> Floats:
    """Values of a table of quantiles at equally spaced probabilities from 0 to 1, linear between them."""
    values = np.asarray(table, dtype=np.float64)
    return np.interp(probabilities, np.linspace(0.0, 1.0, len(values)), values)


def values_in_order(table: ArrayLike, tail: list[float], count: int) -> Floats:
    """`count` values in order, the largest those of `tail` as they are: no table of quantiles tells them well."""
    return np.concatenate([quantile(table, middles(count)[: -len(tail)]), tail])


def in_order_of(keys: Floats, values: Floats) -> Floats:
    """The sorted `values` handed out so that the smallest goes where `keys` has its smallest, and so on."""
    result = np.empty_like(values)
    result[np.argsort(keys, kind="stable")] = values
    return result


def exponential(rng: np.random.Generator, count: int) -> Floats:
    return np.asarray(-np.log1p(-rng.random(count)))


def thinking_times(rng: np.random.Generator, count: int, mean_s: float) -> list[float]:
    """Exponential, to a microsecond."""
    times_s: list[float] = np.round(exponential(rng, count) * mean_s, 6).tolist()
    return times_s


def gamma_gaps(rng: np.random.Generator, shape: float, count: int) -> Floats:
    """Gaps with mean 1 and coefficient of variation 1/sqrt(shape): 1 is Poisson, below 1 bursty, infinity even."""
    if np.isinf(shape):
        return np.ones(count)
    if shape == 1.0:
        return exponential(rng, count)
    if shape < 1.0:  # Stuart's theorem: a gamma of shape + 1, times a power of a uniform
        boost: Floats = np.power(1.0 - rng.random(count), 1.0 / shape)
        return _gamma(rng, shape + 1.0, count) * boost / shape
    return _gamma(rng, shape, count) / shape


def _gamma(rng: np.random.Generator, shape: float, count: int) -> Floats:
    """Marsaglia and Tsang, ACM TOMS 26 (2000), for shapes of at least 1: a cubed normal, accepted or drawn again."""
    d = shape - 1.0 / 3.0
    result = np.empty(count)
    missing = np.arange(count)
    while len(missing):
        normal = np.sqrt(-2.0 * np.log1p(-rng.random(len(missing)))) * np.cos(2.0 * np.pi * rng.random(len(missing)))
        cube = (1.0 + normal / np.sqrt(9.0 * d)) ** 3
        uniform = 1.0 - rng.random(len(missing))
        with np.errstate(invalid="ignore", divide="ignore"):
            limit = 0.5 * normal**2 + d - d * cube + d * np.log(cube)
        accepted = (cube > 0.0) & (np.log(uniform) < limit)
        result[missing[accepted]] = d * cube[accepted]
        missing = missing[~accepted]
    return result
