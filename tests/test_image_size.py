"""The one reading of image sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisparse.errors import ConfigError
from semisparse.image_size import ImageSize

sides = st.integers(1, 10**6)


@given(sides, sides)
def test_height_comes_first_in_every_form(height: int, width: int) -> None:
    size = ImageSize.of((height, width))
    assert (size.height, size.width) == tuple(size) == (height, width)
    assert str(size) == f"{height}x{width}"
    kept = json.loads(json.dumps(size.plain))
    for form in (size, [height, width], str(size), size.plain, kept):
        assert ImageSize.of(form) == size


@given(sides)
def test_a_number_is_a_square_and_stays_a_number(side: int) -> None:
    for form in (side, str(side), (side, side), f"{side}x{side}"):
        size = ImageSize.of(form)
        assert size == (side, side)
        assert size.plain == side
        assert type(size.plain) is int


@pytest.mark.parametrize(
    "given",
    [
        *(
            "large",
            "",
            "180x",
            "x320",
            "180x320x3",
            "180X320",
            "180 x 320",
            "-8",
            "2.5",
            "0",
            "0x9",
        ),
        *("\u0661\u0662", "9" * 5000, 0, -8, 2.5, float("nan"), True, None, {"height": 8}),
        *((180,), (180, 320, 3), (180, 320.0), ("180", "320"), (True, 8), (0, 8), (8, -8), ()),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_size_is_one_sentence_with_the_remedy(given: Any) -> None:
    with pytest.raises(ConfigError) as error:
        ImageSize.of(given)
    assert repr(given)[:20] in str(error.value)
    assert "HEIGHTxWIDTH such as 180x320" in str(error.value)
    assert len(str(error.value)) < 250


def test_neither_side_may_be_below_the_least() -> None:
    assert ImageSize.of("8x9", least=8) == (8, 9)
    for size in (7, "7x9", (9, 7)):
        with pytest.raises(ConfigError, match="8 or more pixels a side"):
            ImageSize.of(size, least=8)
