from __future__ import annotations

import os
from pathlib import Path

import pytest

from semisparse.errors import ConfigError
from semisparse.files import check_writable, clear_drafts, writing


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with writing(path) as draft:
        assert draft.name == path.name  # writers that look at the suffix find it
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def interrupt_writing(path: Path) -> None:
    with writing(path) as draft:
        draft.write_text("ne")
        raise KeyboardInterrupt


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    for target in (path, tmp_path / "other.onnx"):
        with pytest.raises(KeyboardInterrupt):
            interrupt_writing(target)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    kept = [tmp_path / "model.onnx", tmp_path / ".model.onnx.settings", tmp_path / ".git"]
    kept[0].write_text("old")
    kept[1].write_text("mine")
    kept[2].mkdir()
    unfinished = writing(tmp_path / "model.onnx")
    unfinished.__enter__().write_text("ne")
    assert len(list(tmp_path.iterdir())) == 4
    clear_drafts(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept)
    clear_drafts(tmp_path / "absent")


def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with writing(tmp_path / "file") as draft:
            draft.write_text("")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for name in ("nowhere/file", "file/below", "folder"):
        with pytest.raises(OSError, match=name.split("/")[0]), writing(tmp_path / name) as draft:
            draft.write_text("")
    for name in ("file/below", "folder"):
        with pytest.raises(ConfigError, match=f"{name} cannot be written"):
            check_writable(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_checking_a_place_makes_its_folder_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    check_writable(path)
    assert list(path.parent.iterdir()) == []
