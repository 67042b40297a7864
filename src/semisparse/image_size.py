"""The height and width of what a network sees, in all forms in which they are given."""

from __future__ import annotations

import re
from numbers import Integral
from typing import NamedTuple

from semisparse.errors import ConfigError

# The side of a square, (height, width), or one of them as text.
AnySize = int | tuple[int, int] | str

_TEXT = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?")


class ImageSize(NamedTuple):
    """Pixels; as text `180x320`."""

    height: int
    width: int

    @classmethod
    def of(cls, given: AnySize, least: int = 1) -> ImageSize:
        """Of `224` or `"224"`, a square, or of `(180, 320)` or `"180x320"`.

        Raises `ConfigError` for anything else, and for sides below `least`.
        """
        sides = _sides(given)
        if sides is None or min(sides) < least:
            raise ConfigError(
                f"image_size is {given!r:.80}; give HEIGHTxWIDTH such as 180x320, or one number for a "
                f"square, of {least} or more pixels a side."
            )
        return cls(*sides)

    @property
    def plain(self) -> int | str:
        """The one form that settings keep: a number for a square, else text."""
        return self.height if self.height == self.width else str(self)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def _sides(given: object) -> tuple[int, int] | None:
    if isinstance(given, str):
        found = _TEXT.fullmatch(given)
        return (int(found[1]), int(found[2] or found[1])) if found else None
    sides = given if isinstance(given, (tuple, list)) else (given, given)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, Integral) for s in sides):
        return None
    height, width = sides
    return int(height), int(width)
