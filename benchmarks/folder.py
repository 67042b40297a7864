"""Folders of results that are made piece by piece."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection

from semisparse.files import writing


def keep_settings(options: argparse.Namespace, free: Collection[str]) -> None:
    """Make the folder `options.out`, or end the program where its pieces are of other settings.

    Those that are `free` may differ.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "settings.json"
    own = {key: value for key, value in vars(options).items() if key not in ("out", *free)}
    if not path.exists():
        with writing(path) as draft:
            draft.write_text(json.dumps(own) + "\n")
    kept = json.loads(path.read_text())
    if kept != own:
        differing = ", ".join(
            f"{key} {kept.get(key)}, not {own.get(key)}"
            for key in sorted(kept.keys() | own.keys())
            if kept.get(key) != own.get(key)
        )
        raise SystemExit(f"{options.out} holds results with {differing}; give another --out.")
