"""A region of the images: nothing is computed outside of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from rich.progress import Progress
from torch import Tensor, nn

import semisparse
from semisparse.bench.models import prepare
from semisparse.cli import trained
from semisparse.cli.compare import _words
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, MaskError
from semisparse.importance import measure
from semisparse.layers import masked_layers
from semisparse.masks import can_mask, mask_from_score, source_map, take_turn
from semisparse.region import on_plane, rows_of
from semisparse.sparsifier import Sparsifier
from semisparse.training import run, saved, settings
from semisparse.training.apply import Change, apply
from semisparse.training.config_file import read, read_masks, read_region
from semisparse.training.data import calibration_images, load, validation_images
from semisparse.training.data.images import ImageSet
from semisparse.training.data.transforms import v2
from semisparse.training.self_distillation import Recipe, self_distill
from semisparse.training.settings import TrainSettings

sides = st.integers(1, 24)
regions = hnp.arrays(bool, st.tuples(sides, sides)).filter(np.any)
ROAD = ("..#.....", "..##....", ".####...", ".######.")


def scores(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(height, width, dtype=torch.float64, generator=generator)


@given(regions)
def test_rows_are_the_picture(region: np.ndarray) -> None:
    rows = rows_of(torch.from_numpy(region))
    assert [[cell == "#" for cell in row] for row in rows] == region.tolist()
    np.testing.assert_array_equal(on_plane(rows, *region.shape), region)


@given(regions, sides, sides)
def test_a_position_is_inside_where_it_overlaps_a_cell(
    region: np.ndarray, height: int, width: int
) -> None:
    found = on_plane(rows_of(torch.from_numpy(region)), height, width)
    # Both grids, drawn on one that both divide.
    fine = np.kron(region, np.ones((height, width), bool))
    cells = fine.reshape(height, region.shape[0], width, region.shape[1])
    np.testing.assert_array_equal(found, cells.any(axis=(1, 3)))


def test_large_pictures_become_64_cells_a_side_that_leave_nothing_out() -> None:
    region = torch.zeros(480, 50, dtype=torch.bool)
    region[300, 20] = True
    rows = rows_of(region)
    assert (len(rows), len(rows[0])) == (64, 50)
    assert sum(row.count("#") for row in rows) == 1
    assert bool((on_plane(rows, 480, 50) >= region).all())


@given(regions, st.floats(0, 0.999), st.integers(1, 9), st.integers(0, 99))
def test_blocks_outside_are_masked_and_of_the_others_those_of_lowest_score(
    region: np.ndarray, sparsity: float, block: int, seed: int
) -> None:
    inside = torch.from_numpy(region)
    height, width = inside.shape
    score = scores(height, width, seed)
    mask = mask_from_score(score, sparsity, block, inside)
    corners = [(y, x) for y in range(0, height, block) for x in range(0, width, block)]
    whole = {c: (slice(c[0], c[0] + block), slice(c[1], c[1] + block)) for c in corners}
    within = [c for c in corners if inside[whole[c]].any()]
    within.sort(key=lambda c: float(score[whole[c]].mean()))
    masked = []
    for corner, block_of in whole.items():
        assert bool(mask[block_of].all()) or not bool(mask[block_of].any())
        if corner not in within:
            assert not bool(mask[block_of].any())
        elif not bool(mask[block_of].any()):
            masked.append(corner)
    assert sorted(masked) == sorted(within[: len(masked)])
    areas = [score[whole[c]].numel() for c in within]
    wanted = round(sparsity * sum(areas))
    reachable = [sum(areas[:n]) for n in range(len(areas))]
    assert abs(sum(areas[: len(masked)]) - wanted) == min(abs(n - wanted) for n in reachable)
    assert bool(mask.any())


@given(regions, st.floats(0, 0.999), st.integers(1, 9))
def test_can_mask_tells_whether_any_score_masks_within_a_region(
    region: np.ndarray, sparsity: float, block: int
) -> None:
    inside = torch.from_numpy(region)
    height, width = inside.shape
    possible = False
    # Some score has the smallest block first: that of its corner.
    for y in range(0, height, block):
        for x in range(0, width, block):
            score = torch.ones(height, width, dtype=torch.float64)
            score[y : y + block, x : x + block] = 0
            possible |= not bool(mask_from_score(score, sparsity, block, inside).all())
    assert can_mask(sparsity, height, width, block, inside) == possible


def test_everything_inside_is_as_no_region() -> None:
    inside = torch.ones(9, 14, dtype=torch.bool)
    score = scores(9, 14, 0)
    for block in (1, 2, 4):
        assert torch.equal(
            mask_from_score(score, 0.4, block, inside), mask_from_score(score, 0.4, block)
        )
        assert torch.equal(take_turn(score, 1, block, inside), take_turn(score, 1, block))


@given(regions, st.integers(0, 99))
def test_turns_share_the_region(region: np.ndarray, seed: int) -> None:
    inside = torch.from_numpy(region)
    score = scores(*inside.shape, seed)
    turns = [take_turn(score, turn, 1, inside) for turn in range(4)]
    half = [mask_from_score(turn, 0.5, 1, inside) for turn in turns]
    for one, other in (half[:2], half[2:]):
        assert int((~one & ~other & inside).sum()) <= 1
    quarter = [mask_from_score(turn, 0.75, 1, inside).int() for turn in turns]
    assert int((sum(quarter)[inside] == 0).sum()) <= 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.point(x + self.body(x)).relu())


def masked(**values: object) -> tuple[Net, Sparsifier]:
    torch.manual_seed(0)
    model = Net().eval()
    config = SparsityConfig(region=ROAD, **values)
    return model, Sparsifier(model, torch.zeros(1, 1, 16, 32), config, 10)


def test_all_layers_but_skipped_ones_are_masked_outside_from_the_first_step() -> None:
    inside = on_plane(ROAD, 8, 16)
    _, sparsifier = masked(sparsity=0, skip=["head"])
    sparsifier.step()
    assert sparsifier.masks.keys() == {"stem", "body", "point"}
    assert all(torch.equal(mask, inside) for mask in sparsifier.masks.values())

    _, sparsifier = masked(sparsity=0.5, only=["body"], begin=0.5, end=1, per_layer={"head": 0})
    seen = []
    for _ in range(10):
        sparsifier.step()
        assert torch.equal(sparsifier.masks["head"], inside)
        seen.append(int(sparsifier.masks["body"].sum()))
        assert not bool((sparsifier.masks["body"] & ~inside).any())
    assert seen[:5] == 5 * [int(inside.sum())]
    assert seen[9] < seen[7] < seen[4]


def test_no_draw_is_judged_before_masks_depend_on_it() -> None:
    _, sparsifier = masked(sparsity=0.5, begin=0.5, end=0.9)
    for step in range(10):
        sparsifier.step()
        if step == 7:
            drawn = sparsifier.masks["body"]
        sparsifier.observe(1.0 - 0.5 * (step < 5) - 0.2 * (step == 7))
    assert sparsifier.frozen
    assert not bool((sparsifier.masks["body"] & ~drawn).any())


def test_the_region_comes_with_the_sparsifier_and_goes_with_it() -> None:
    model, sparsifier = masked(sparsity=0, block=2)
    inside = on_plane(ROAD, 8, 16)
    tiles = nn.functional.max_pool2d(inside[None].float(), 2)[0].repeat_interleave(2, 0)
    assert torch.equal(sparsifier.masks["body"], tiles.repeat_interleave(2, 1) > 0)
    sparsifier.detach()
    assert not masked_layers(model)


def test_a_state_of_another_region_is_refused() -> None:
    state = masked(sparsity=0)[1].state_dict()
    config = SparsityConfig(0, region=[*ROAD[:3], "########"])
    other = Sparsifier(Net(), torch.zeros(1, 1, 16, 32), config, 10)
    with pytest.raises(ConfigError, match="region is"):
        other.load_state_dict(state)


@pytest.mark.parametrize("fill", ["nearest", "bias", "mean"])
def test_the_exported_model_computes_the_region(tmp_path: Path, fill: str) -> None:
    model, sparsifier = masked(sparsity=0, fill=fill)
    sparsifier.freeze()
    x = torch.randn(2, 1, 16, 32)
    with torch.no_grad():
        expected = model(x)
        sparsifier.detach()
        dense = model(x)
    inside = on_plane(ROAD, 8, 16)
    # Its border sees what the fill holds outside, the rest of it what the dense model sees.
    inner = -nn.functional.max_pool2d(-inside[None].float(), 3, 1, 1)[0] > 0
    assert bool(inner.any())
    assert torch.allclose(expected[..., inner], dense[..., inner], atol=1e-5)
    assert not torch.allclose(expected[..., ~inside], dense[..., ~inside], atol=1e-3)

    model, sparsifier = masked(sparsity=0, fill=fill)
    sparsifier.freeze()
    path = tmp_path / "region.onnx"
    semisparse.export_onnx(model, x[:1], path)
    session = semisparse.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_outside_holds_the_nearest_of_the_region() -> None:
    model, sparsifier = masked(sparsity=0)
    sparsifier.freeze()
    with torch.no_grad():
        out = model(torch.randn(1, 1, 16, 32))[0].flatten(1)
    sources = source_map(on_plane(ROAD, 8, 16), "nearest").flatten().long()
    assert torch.equal(out, out[:, sources])


def picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_a_region_is_read_from_a_picture(tmp_path: Path) -> None:
    grey = np.zeros((3, 5), np.uint8)
    grey[1, 2:] = [127, 128, 255]
    expected = (".....", "...##", ".....")
    assert read_region(picture(tmp_path / "grey.png", grey)) == expected
    colours = np.stack(3 * [grey], axis=-1)
    assert read_region(picture(tmp_path / "colours.png", colours)) == expected
    opacity = np.full_like(grey, 255)
    opacity[1, 4] = 0
    transparent = np.dstack([colours, opacity])
    assert read_region(picture(tmp_path / "cut.png", transparent)) == (".....", "...#.", ".....")


def test_a_picture_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file"):
        read_region(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("#")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_region(tmp_path / "text.png")
    whole = picture(tmp_path / "whole.png", np.full((64, 64), 255, np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_region(tmp_path / "cut.png")
    deep = Image.fromarray(np.full((4, 4), 1000, np.uint16))
    deep.save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match="not of 8 bits"):
        read_region(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match="no white pixel"):
        read_region(picture(tmp_path / "black.png", np.zeros((4, 4), np.uint8)))
    with pytest.raises(MaskError, match="no pixel inside"):
        rows_of(torch.zeros(4, 4, dtype=torch.bool))


def test_a_file_of_settings_names_a_picture_beside_it(tmp_path: Path) -> None:
    pixels = np.zeros((3, 5), np.uint8)
    pixels[1, 2:] = 255
    picture(tmp_path / "road.png", pixels)
    expected = (".....", "..###", ".....")
    (tmp_path / "run.yaml").write_text("sparsity: 0\nregion: road.png\n")
    assert read(tmp_path / "run.yaml")["region"] == expected
    (tmp_path / "nested.yaml").write_text("sparsity:\n  region: road.png\n")
    assert tuple(read(tmp_path / "nested.yaml")["region"]) == expected
    (tmp_path / "masks.yaml").write_text("region: ['.##', '###']\n")
    assert settings.masks(read_masks(tmp_path / "masks.yaml")) == SparsityConfig(
        0, region=[".##", "###"]
    )
    (tmp_path / "masks.yaml").write_text("region:\n  - ###\n")
    with pytest.raises(ConfigError, match=r"masks\.yaml: .*quotes"):
        read_masks(tmp_path / "masks.yaml")


def test_images_stay_in_their_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("empty", "full"):
        (tmp_path / kind).mkdir()
        for index in range(10):
            pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
            picture(tmp_path / kind / f"{index}.png", pixels)
    data = load(f"imagefolder:{tmp_path}", image_size=16, in_place=True)
    plain = ImageSet(data.train.source, data.val.prepare, data.val.finish)
    for index in range(len(data.train)):
        assert torch.equal(data.train[index][0], plain[index][0])


def test_the_commands_take_a_picture(invoke, refused, tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[4:, 2:14] = 255
    road = picture(tmp_path / "road.png", pixels)
    rows = rows_of(torch.from_numpy(pixels > 0))
    out = tmp_path / "run"
    trained = ["--model", "semisparse/resnet8", "--data", "digits", "--image-size", 16]
    trained += ["--epochs", 1, "--region", road, "--skip", "shortcut", "--out", out, "--json"]
    figures = json.loads(invoke("train", *trained).stdout)
    assert figures["sparsities"]["stem.0"] == pytest.approx(1 - 12 * 12 / 256)
    config = saved.FinishedRun(out).settings.sparsity
    assert config is not None
    assert (config.sparsity, config.region) == (0, rows)
    settings = TrainSettings.from_dict(json.loads((out / "config.json").read_text()))
    assert TrainSettings.from_flat(settings.to_flat()) == settings
    assert run.train(settings, out, resume=True).sparsities == figures["sparsities"]

    assert _words(settings.sparsity) == "0 in region nearest, not on shortcut"
    assert "region: [], not ['" in refused("train", "--resume", out, "--region", "none")

    dense = tmp_path / "dense"
    invoke("train", *trained[:8], "--out", dense)
    masked = tmp_path / "masked.onnx"
    options = ["--model", dense, "--region", road, "--only", "block-last", "--sparsity", 0.5]
    options += ["--images", 40, "--draws", 1, "--out", masked, "--json"]
    sparsities = json.loads(invoke("apply", *options).stdout)["sparsities"]
    assert sparsities["stem.0"] == pytest.approx(1 - 144 / 256)
    assert sparsities["layer1.0.conv2"] == pytest.approx(1 - 72 / 256)
    (written,) = (p.value for p in onnx.load(masked).metadata_props if p.key == "semisparse.config")
    assert SparsityConfig.from_json(written).region == rows

    assert "There is no file" in refused(
        "apply", "--model", dense, "--region", tmp_path / "absent.png", "--out", masked
    )


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 54x96 pixels, dark or bright, but for noise."""
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for level, kind in ((40, "free"), (150, "taken")):
        (folder / kind).mkdir()
        for index in range(40):
            pixels = level + rng.integers(0, 60, (54, 96, 3), np.uint8)
            picture(folder / kind / f"{index}.png", pixels.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def whole_run(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run on those, of which nothing is cut off."""
    chosen = {"model": "semisparse/resnet8", "data": f"imagefolder:{frames}", "batch_size": 16}
    out = tmp_path_factory.mktemp("runs") / "whole"
    recipe = TrainSettings(**chosen, image_size=(27, 48), whole=True, epochs=1)
    run.train(recipe, out, progress=Progress(disable=True))
    return out


@pytest.fixture
def uncut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting anything off an image fails."""

    def cut(*arguments: object) -> None:
        raise AssertionError("a part of an image was cut off")

    for kind in (v2.CenterCrop, v2.RandomResizedCrop, v2.RandomCrop):
        monkeypatch.setattr(kind, "forward", cut)


def input_of(path: Path) -> list[int]:
    (entry,) = onnx.load(path).graph.input
    return [size.dim_value for size in entry.type.tensor_type.shape.dim][1:]


def test_whole_frames_from_training_to_the_session(
    invoke, refused, uncut: None, frames: Path, whole_run: Path, tmp_path: Path
) -> None:
    """A camera's images, 9 to 16, of which the right half of the lower half matters."""
    pixels = np.zeros((27, 48), np.uint8)
    pixels[14:, 24:] = 255
    lane = picture(tmp_path / "lane.png", pixels)
    masked = tmp_path / "masked"
    taught = ["--model", whole_run, "--data", f"imagefolder:{frames}", "--batch-size", 16]
    taught += ["--epochs", 1, "--region", lane]
    taught += ["--importance", 1, "--sparsity", 0.2, "--only", "block-last", "--teacher", whole_run]
    invoke(
        "train", *taught, "--prune-channels", 0.3, "--prune-importance", "taylor", "--out", masked
    )
    kept = json.loads((masked / "config.json").read_text())
    assert (kept["image_size"], kept["whole"]) == ("27x48", True)
    model, example, _ = saved.load_run(masked)
    assert example.shape == (1, 3, 27, 48)
    # The stem is masked outside of the region only, so its mask is the picture.
    np.testing.assert_array_equal(masked_layers(model)["stem.0"].mask, pixels > 0)
    path = tmp_path / "masked.onnx"
    invoke("export", "--run", masked, "--out", path)
    assert input_of(path) == [3, 27, 48]
    invoke("check", path)
    ran = json.loads(invoke("run", path, "--repeats", 1, "--json").stdout)
    assert ran["inputs"] == {"input": [1, 3, 27, 48]}
    for config in ([], ["--config", masked / "config.json"]):
        assert "test accuracy" in invoke("train", "--resume", masked, *config).stdout
    resumed = ["train", "--resume", masked]
    assert "image_size: 48x27, not 27x48" in refused(*resumed, "--image-size", "48x27")
    assert "whole: False, not True" in refused(*resumed, "--no-whole")

    # Masks on the run without training take images as it did.
    options = ["--model", whole_run, "--region", lane, "--draws", 1, "--images", 40, "--out", path]
    sparsities = json.loads(invoke("apply", *options, "--distill-steps", 2, "--json").stdout)[
        "sparsities"
    ]
    assert sparsities["stem.0"] == pytest.approx(1 - 13 * 24 / (27 * 48))
    assert input_of(path) == [3, 27, 48]
    small = ["--images", 20, "--rounds", 10, "--sparsities", 0.5, "--block", 1]
    goal = ["--max-drop", 100, *small, "--out", tmp_path / "sparsity.json"]
    figures = json.loads(invoke("tune", whole_run, *goal, "--json").stdout)
    assert figures["path"] == str(tmp_path / "sparsity.json")
    assert input_of(tmp_path / "sparsity.tune" / "tuned.onnx") == [3, 27, 48]


@pytest.mark.parametrize(
    ("prepared", "altered"), [([], False), (["--whole"], False), (["--no-whole"], True)]
)
def test_whole_frames_are_distilled_as_they_are(
    invoke, monkeypatch, whole_run: Path, tmp_path: Path, prepared, altered
) -> None:
    seen = []
    for kind in (v2.RandomResizedCrop, v2.RandomHorizontalFlip):
        monkeypatch.setattr(kind, "forward", lambda self, image: seen.append(type(self)) or image)
    chosen = ["--model", whole_run, "--sparsity", 0.2, "--draws", 1, "--images", 40]
    chosen += ["--distill-steps", 2, "--out", tmp_path / "masked.onnx", *prepared]
    invoke("apply", *chosen)
    assert set(seen) == ({v2.RandomResizedCrop, v2.RandomHorizontalFlip} if altered else set())


@pytest.mark.parametrize(
    ("given", "followed"),
    [
        ((None, None), ("27x48", True)),
        (("16x32", None), ((16, 32), True)),
        ((None, False), ((27, 48), False)),
        (("16", False), (16, False)),
    ],
)
def test_images_for_a_run_are_prepared_as_it_did_unless_told_otherwise(
    frames: Path, whole_run: Path, given, followed
) -> None:
    run = [str(whole_run), None, 1000, None, None, *given, 6, 0.01]
    _, images, source = trained.load(*run, option="--data")
    size, whole = followed
    name = f"imagefolder:{frames}"
    options = {"image_size": size, "whole": whole}
    assert torch.equal(images, calibration_images(name, 6, **options))
    held_out, labels, _ = validation_images(name, 6, **options)
    assert torch.equal(source.validation(6)[0], held_out)
    assert torch.equal(source.validation(6)[1], labels)


@pytest.fixture
def settled(
    invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., TrainSettings]:
    """The settings that `train` comes to: `settled("--model", folder)`."""

    def settle(*arguments: object) -> TrainSettings:
        found: list[TrainSettings] = []

        def train(options: TrainSettings, out: Path, *, resume: bool) -> run.RunResult:
            found.append(options)
            return run.RunResult(1.0, 0.0, 1.0, {})

        monkeypatch.setattr(run, "train", train)
        invoke("train", *arguments, "--data", "digits", "--out", tmp_path / "out")
        (settings,) = found
        return settings

    return settle


@pytest.mark.parametrize(
    ("written", "given", "prepared"),
    [
        ("", [], ("27x48", True)),
        ("", ["--image-size", "16x32"], ("16x32", True)),
        ("", ["--no-whole"], ("27x48", False)),
        ("image-size: 16\n", [], (16, True)),
        ("image-size: 16\n", ["--image-size", "48"], (48, True)),
        ("image_size: null\nwhole: false\n", [], (None, False)),
    ],
)
def test_a_run_prepares_images_as_the_one_that_it_goes_on_from_unless_told_otherwise(
    settled, whole_run: Path, tmp_path: Path, written, given, prepared
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"epochs: 2\n{written}")
    found = settled("--model", whole_run, "--config", config, *given)
    assert (found.image_size, found.whole) == prepared
    # Not only where it is an option.
    config.write_text(f"model: {whole_run}\n{written}")
    assert settled("--config", config, *given) == dataclasses.replace(found, epochs=20)


def test_a_region_of_a_file_is_taken_back(settled, refused, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((3, 5), np.uint8)
    pixels[1, 2:] = 255
    picture(tmp_path / "none.png", pixels).rename(tmp_path / "none")
    rows = (".....", "..###", ".....")
    config, masks = tmp_path / "run.yaml", tmp_path / "masks.yaml"
    chosen = ["--model", "semisparse/resnet8", "--config", config]

    config.write_text("region: ./none\n")
    assert settled(*chosen).sparsity == SparsityConfig(0, region=rows)
    assert settled(*chosen, "--region", "none").sparsity is None
    assert "skip is given, but no sparsity" in refused(
        *("train", *chosen, "--data", "digits", "--out", tmp_path / "other"),
        *("--region", "none", "--skip", "1x1"),
    )
    config.write_text("sparsity: {sparsity: 0.3, region: ./none}\n")
    assert settled(*chosen).sparsity == SparsityConfig(0.3, region=rows)
    assert settled(*chosen, "--region", "none").sparsity == SparsityConfig(0.3)
    masks.write_text("sparsity: 0.2\nregion: none\n")
    taken_back = ["--sparsity-config", masks]
    assert settled(*chosen, *taken_back).sparsity == SparsityConfig(0.2)
    assert settled(*chosen, *taken_back, "--region", "./none").sparsity == SparsityConfig(
        0.2, region=rows
    )
    config.write_text("epochs: 2\n")
    assert settled(*chosen, "--region", "none").sparsity is None

    masks.write_text("region: ./none\n")
    applied = ["apply", "--model", "semisparse/resnet8", *taken_back]
    assert "--weights" in refused(*applied)
    assert "nothing to apply" in refused(*applied, "--region", "none")


def test_a_size_that_a_run_left_to_its_data_is_taken_from_it_too(
    settled, whole_run: Path, tmp_path: Path
) -> None:
    unsaid = shutil.copytree(whole_run, tmp_path / "unsaid")
    kept = json.loads((unsaid / "config.json").read_text())
    (unsaid / "config.json").write_text(json.dumps({**kept, "image_size": None}))
    assert settled("--model", unsaid).image_size == "27x48"
    chosen = [str(unsaid), None, 1000, None, None, None, None, 6, 0.01]
    _, images, _ = trained.load(*chosen, option="--data")
    assert images.shape[2:] == (27, 48)


def test_the_benchmark_times_the_region_beside_the_dense_model(tmp_path: Path) -> None:
    model = prepare(
        "semisparse/resnet8", tmp_path, sparsities=[0, 0.5], fills=["nearest"], region=ROAD
    )
    dense, region, half = model.variants
    names = [variant.name for variant in model.variants]
    assert names == [
        "semisparse 0",
        "semisparse 0 in region nearest",
        "semisparse 0.5 in region nearest",
    ]
    assert 0.4 < region.work.flops / dense.work.flops < 0.7
    with pytest.raises(ConfigError, match="models by name only"):
        prepare(str(region.path), tmp_path, sparsities=[0], fills=["nearest"], region=ROAD)
    assert half.work.flops / region.work.flops == pytest.approx(0.5, abs=0.03)


class Segmenter(nn.Sequential):
    """Which of two textures each position shows."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Conv2d(8, 3, 1),
        )


def test_a_segmenter_is_masked_and_distilled_by_its_answers_within_the_region() -> None:
    torch.manual_seed(0)
    model = Segmenter().eval()
    model[-1].weight.data *= 8
    teacher = copy.deepcopy(model)
    images = torch.randn(40, 1, 16, 32)
    config = SparsityConfig(0.5, only=["3"], region=ROAD, fill="bias", importance=1)
    applied = apply(model, images, config, draws=2)
    inside = on_plane(ROAD, 16, 32)
    with torch.no_grad():
        outputs, reference = model(images), teacher(images)
    own, other = (v.permute(0, 2, 3, 1)[:, inside].flatten(0, 1) for v in (outputs, reference))
    kept = min(applied.before.divergence, applied.after.divergence)
    assert kept == pytest.approx(Change.between(own, other).divergence)
    assert Change.between(outputs, reference).divergence > 1.2 * kept

    recipe = Recipe(60, learning_rate=1e-2, batch_size=8)
    learned = self_distill(model, teacher, images, recipe, region=config.region)
    assert learned.kept
    with torch.no_grad():
        outputs, reference = model(images[::4]), teacher(images[::4])
    own, other = (v.permute(0, 2, 3, 1)[:, inside].flatten(0, 1) for v in (outputs, reference))
    nearest = Change.between(own, other).divergence
    assert learned.after.divergence == pytest.approx(nearest)
    assert learned.after.divergence < learned.before.divergence


def test_positions_that_no_answer_of_the_region_depends_on_have_no_importance() -> None:
    torch.manual_seed(0)
    rows = ("#.......",)
    found = measure(Segmenter().eval(), torch.randn(20, 1, 16, 32), region=rows)[16, 32]
    assert float(found[:, :4].min()) > 0
    # In parts of 4 columns, of which the filters reach but one into the second.
    assert float(found[:, 8:].max()) == 0
    everywhere = measure(Segmenter().eval(), torch.randn(20, 1, 16, 32))[16, 32]
    assert float(everywhere.min()) > 0
