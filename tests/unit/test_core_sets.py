"""Sets of cores, as options write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.runtime.core_sets import chosen, core_set, cores_of, text_of


@pytest.mark.parametrize(
    ("text", "shortest", "cores"),
    [("0", "0", (0,)), ("0-1,4", "0-1,4", (0, 1, 4)), ("3,1, 2,2", "1-3", (1, 2, 3)), ("", "", ()), ("5-5", "5", (5,))],
)
def test_sets_of_cores(text: str, shortest: str, cores: tuple[int, ...]) -> None:
    assert cores_of(text) == cores
    assert core_set(text) == shortest


@given(st.sets(st.integers(0, 9999), max_size=40))
def test_a_set_is_read_back(cores: set[int]) -> None:
    assert cores_of(text_of(sorted(cores))) == tuple(sorted(cores))


@pytest.mark.parametrize("text", ["x", "1-", "-1", "2-1", "0,,1", "0;1", "1.5", "99999"])
def test_what_is_no_set(text: str) -> None:
    with pytest.raises(ValueError, match="give cores such as 0-1,4"):
        cores_of(text)


def test_cores_that_are_not_there_are_named_in_one_line() -> None:
    assert chosen("1-2", (0, 1, 2)) == (1, 2)
    assert chosen("", (0, 1)) == chosen(None, (0, 1)) == ()
    with pytest.raises(ConfigError, match=r"^--cores 1-4: this process cannot use core 3 \(it may use 0-2\)$"):
        chosen("1-4", (0, 1, 2))
