"""Measurements on disk, so that an interrupted command goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semisparse.files import writing


class Cache:
    """Plain values by name, written whole after each; those of another key are forgotten.

    A file that cannot be read counts as empty: what is in it can be measured again.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self._path = path
        # As they come back from the file: tuples are lists there.
        self._key = json.loads(json.dumps(key))
        self._values: dict[str, Any] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(found, dict) and found.get("key") == self._key:
            self._values = found.get("values", {})

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value
        with writing(self._path) as draft:
            text = json.dumps({"key": self._key, "values": self._values}, indent=1)
            draft.write_text(text, encoding="utf-8")
