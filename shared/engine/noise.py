"""Where the randomness of a draw comes from: integers that are a pure function of (seed, choice, position)."""

from shared.engine.port import Draw

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def noise_key(draw: Draw) -> int:
    """64 well-mixed bits; every field changes about half of them."""
    key = 0
    for part in (draw.seed, draw.choice, draw.position):
        key = _mixed((key ^ (part & _MASK)) + _GOLDEN)
    return key


def _mixed(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
