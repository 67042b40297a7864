from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import pickle
import re
import struct
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from semisparse.cli import app
from semisparse.errors import ConfigError, DataError
from semisparse.training import data
from semisparse.training.data import ImageData, calibration_images
from semisparse.training.data.images import ImageSet
from semisparse.training.data.order import EvaluationOrder, TrainingOrder, even_batch_size

# torchvision itself is importable only after semisparse.training.
from semisparse.training.data.published import datasets
from semisparse.training.data.transforms import v2

imagenet = datasets.imagenet


def drawn(loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images.clone(), labels.clone()) for images, labels in loader]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def paths(split) -> set[str]:
    return {path.decode() for path in split.source.images._paths}


def labels(split) -> list[int]:
    return split.source.labels.tolist()


# What the sets are


def test_digits_are_split_once_and_for_all():
    first, second = data.load("digits"), data.load("digits")
    whole = {image.tobytes() for image in (load_digits().images / 16).astype(np.float32)}
    parts = []
    for name in ("train", "val", "test"):
        images = getattr(first, name).source.images
        assert torch.equal(images, getattr(second, name).source.images)
        parts.append({image.numpy().tobytes() for image in images})
    assert [len(first.train), len(first.val), len(first.test)] == [1212, 135, 450]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole)


def test_digits_are_upsampled_and_normalised():
    splits = data.load("digits", image_size=16)
    image, label = splits.train[0]
    assert image.shape == (1, 16, 16)
    original = load_digits()
    (index,) = np.flatnonzero(
        (original.images / 16 == splits.train.source.images[0, 0].numpy()).all((1, 2))
    )
    assert label == original.target[index]
    pixels = torch.stack([splits.train[index][0] for index in range(200)])
    assert abs(float(pixels.mean())) < 0.1
    assert 0.7 < float(pixels.std()) < 1.3


def write_idx(folder, count: int, packed: bool) -> None:
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
            + images.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, count)
            + labels.tobytes(),
        }
        for name, content in files.items():
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, packed):
    folder = tmp_path if packed else tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder, 200, packed)
    splits = data.load("fashion-mnist", tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (180, 20, 200)
    assert sorted(labels(splits.val)) == [label for label in range(10) for _ in range(2)]
    image, label = splits.test[13]
    assert (image.shape, label) == ((1, 32, 32), 3)


def test_fashion_mnist_that_is_absent_or_damaged_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"--download.*dataset-fashion-mnist"):
        data.load("fashion-mnist", tmp_path)
    write_idx(tmp_path, 200, packed=True)
    whole = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    flipped = whole[:100] + bytes(byte ^ 0xFF for byte in whole[100:200]) + whole[200:]
    for damaged in (
        whole[: len(whole) // 2],
        flipped,
        gzip.compress(b"\0\0\x08"),
        gzip.compress(b""),
    ):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="train-images-idx3-ubyte"):
            data.load("fashion-mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(gzip.decompress(whole)[:-1])
    with pytest.raises(DataError, match="whole IDX file"):
        data.load("fashion-mnist", tmp_path)


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A data set of 100 training and 20 test images laid out as CIFAR10, and its archive."""
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ["data_batch_1", "data_batch_2", "test_batch"]:
        count = 20 if name == "test_batch" else 50
        pixels = rng.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        entry = {"data": pixels, "labels": [index % 10 for index in range(count)]}
        (folder / name).write_bytes(pickle.dumps(entry))
    names = [f"class{index}" for index in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    listed = {name: [name, md5(folder / name)] for name in ("data_batch_1", "data_batch_2")}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", list(listed.values()))
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    return folder.parent


def test_cifar10_is_shifted_and_mirrored_and_its_test_split_is_the_official_one(cifar10):
    splits = data.load("cifar10", cifar10)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 10, 20)
    assert (splits.channels, splits.image_size, len(splits.classes)) == (3, (32, 32), 10)
    assert sorted(labels(splits.val)) == list(range(10))
    official = pickle.loads((cifar10 / "cifar-10-batches-py" / "test_batch").read_bytes())
    pixels = splits.test.source.images.reshape(20, -1).numpy()
    np.testing.assert_array_equal(pixels, official["data"])
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    std = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]
    expected = (splits.test.source.images[7] / 255 - mean) / std
    torch.testing.assert_close(splits.test[7][0], expected)

    # Every training image is a window of the padded image or of its mirror image.
    loader = ImageData("cifar10", cifar10, batch_size=90).train_dataloader()
    for image, order in zip(next(iter(loader))[0], loader.sampler, strict=True):
        shown = (image * std + mean).mul(255).round().byte()
        original = torch.nn.functional.pad(splits.train.source.images[order.image], (4, 4, 4, 4))
        windows = torch.cat([original, original.flip(2)]).unfold(1, 32, 1).unfold(2, 32, 1)
        windows = windows.reshape(2, 3, 81, 32, 32).transpose(1, 2).reshape(-1, 3, 32, 32)
        assert (windows == shown).flatten(1).all(1).any()


def test_data_may_be_given_by_its_own_folder_too(cifar10):
    assert len(data.load("cifar10", cifar10 / "cifar-10-batches-py").test) == 20


def test_an_absent_or_damaged_set_is_one_error_with_the_folder_and_the_remedy(cifar10, tmp_path):
    for name, folder in [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("flowers102", "flowers-102"),
        ("food101", "food-101"),
    ]:
        with pytest.raises(
            DataError, match=f"{name} is not in .*{folder}.*--download.*--data-root"
        ):
            data.load(name, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    batch = cifar10 / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cifar10 in .* is not whole.*remove it"):
        data.load("cifar10", cifar10)


@pytest.fixture
def server(tmp_path):
    """The address under which the files of `tmp_path` are served."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_set_is_fetched_once(cifar10, tmp_path, monkeypatch, server):
    target = tmp_path / "fetched"
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server}/cifar-10-python.tar.gz")
    splits = data.load("cifar10", target, download=True)
    original = data.load("cifar10", cifar10)
    assert torch.equal(splits.train.source.images, original.train.source.images)
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server}/gone.tar.gz")
    assert len(data.load("cifar10", target, download=True).train) == 90
    with pytest.raises(DataError, match=r"cifar10 cannot be fetched into .*404"):
        data.load("cifar10", tmp_path / "elsewhere", download=True)


def test_processes_of_one_run_fetch_a_set_once(cifar10, tmp_path, monkeypatch, server, capfd):
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server}/cifar-10-python.tar.gz")
    with ThreadPoolExecutor(4) as pool:
        loaded = list(
            pool.map(lambda _: data.load("cifar10", tmp_path / "new", download=True), range(4))
        )
    assert {len(splits.train) for splits in loaded} == {90}
    # torchvision asks once for where it is redirected, and once for the file.
    assert capfd.readouterr().err.count("GET /cifar-10-python.tar.gz") == 2


def test_fashion_mnist_is_fetched_where_it_is_not(tmp_path, monkeypatch, server):
    write_idx(tmp_path, 200, packed=True)
    names = [name for name, _ in datasets.FashionMNIST.resources]
    listed = [(name, md5(tmp_path / name)) for name in names]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", listed)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{server}/"])
    original = data.load("fashion-mnist", tmp_path, download=True)
    assert not (tmp_path / "FashionMNIST").exists()
    fetched = data.load("fashion-mnist", tmp_path / "new", download=True)
    assert torch.equal(fetched.test.source.images, original.test.source.images)
    (tmp_path / "new" / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    (tmp_path / "new" / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="--download"):
        data.load("fashion-mnist", tmp_path / "new")
    assert len(data.load("fashion-mnist", tmp_path / "new", download=True).test) == 200
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{server}/gone/"])
    with pytest.raises(DataError, match=r"fashion-mnist cannot be fetched") as error:
        data.load("fashion-mnist", tmp_path / "other", download=True)
    assert "\n" not in str(error.value)


def write_image(path, colour=(0, 0, 0), size=(40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_flowers102_has_the_official_splits(tmp_path, monkeypatch):
    folder = tmp_path / "flowers-102"
    for number in range(1, 31):
        write_image(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.arange(30)[None] % 3 + 1})
    split = {"trnid": np.arange(11, 21), "valid": np.arange(1, 11), "tstid": np.arange(21, 31)}
    savemat(folder / "setid.mat", {name: ids[None] for name, ids in split.items()})
    files = {
        "image": datasets.Flowers102._file_dict["image"],
        "label": ("imagelabels.mat", md5(folder / "imagelabels.mat")),
        "setid": ("setid.mat", md5(folder / "setid.mat")),
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    splits = data.load("flowers102", tmp_path)
    assert (len(splits.classes), splits.image_size) == (102, (224, 224))
    numbers = {
        name: sorted(int(path[-9:-4]) for path in paths(getattr(splits, name)))
        for name in ("train", "val", "test")
    }
    assert numbers == {
        "train": list(range(11, 21)),
        "val": list(range(1, 11)),
        "test": list(range(21, 31)),
    }
    assert labels(splits.val) == [index % 3 for index in range(10)]


def test_food101_holds_validation_images_out_of_the_training_split(tmp_path):
    folder = tmp_path / "food-101"
    for split, numbers in (("train", range(20)), ("test", range(20, 25))):
        listed = {dish: [f"{dish}/{number}" for number in numbers] for dish in ("pie", "soup")}
        (folder / "meta").mkdir(parents=True, exist_ok=True)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for entry in (*listed["pie"], *listed["soup"]):
            write_image(folder / "images" / f"{entry}.jpg")
    splits = data.load("food101", tmp_path)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [36, 4, 10]
    assert sorted(labels(splits.val)) == [0, 0, 1, 1]
    assert paths(splits.val).isdisjoint(paths(splits.train) | paths(splits.test))
    assert {int(path.split("/")[-1][:-4]) for path in paths(splits.test)} == set(range(20, 25))


def test_imagenet_is_tested_on_its_validation_images(tmp_path):
    for wnid in ("n01440764", "n01443537"):
        for number in range(100):
            write_image(tmp_path / "train" / wnid / f"{wnid}_{number}.JPEG", size=(8, 8))
        for number in range(3):
            write_image(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number}.JPEG", size=(8, 8))
    splits = data.load("imagenet", tmp_path)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [196, 4, 6]
    assert all("/val/" in path for path in paths(splits.test))
    assert all("/train/" in path for path in paths(splits.train) | paths(splits.val))
    assert splits.classes == ("n01440764", "n01443537")


def test_imagenet_that_is_absent_says_where_it_comes_from(tmp_path):
    with pytest.raises(DataError, match=r"image-net\.org.*--download.*--data-root"):
        data.load("imagenet", tmp_path)
    with pytest.raises(DataError, match=r"ILSVRC2012_devkit.*put the archives"):
        data.load("imagenet", tmp_path, download=True)


def pack(archive, folder) -> None:
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


def test_the_archives_of_imagenet_are_unpacked(tmp_path, monkeypatch):
    root, made = tmp_path / "root", tmp_path / "made"
    wnids = ["n01440764", "n01443537"]
    for wnid in wnids:
        for number in range(100):
            write_image(made / wnid / f"{wnid}_{number}.JPEG", size=(8, 8))
        (made / "train").mkdir(exist_ok=True)
        pack(made / "train" / f"{wnid}.tar", made / wnid)
    for number in range(1, 7):
        write_image(made / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", size=(8, 8))
    kit = made / "kit" / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    rows = [(1, wnids[0], "tench, Tinca tinca", "-", 0), (2, wnids[1], "goldfish", "-", 0)]
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    synsets = np.array(rows, [(field, object) for field in fields])
    savemat(kit / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{index}\n" for index in (1, 2, 1, 2, 1, 2))
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    root.mkdir()
    archives = imagenet.ARCHIVE_META
    for part, folder in [("train", "train"), ("val", "val"), ("devkit", "kit")]:
        archive = root / archives[part][0]
        pack(archive, made / folder)
        monkeypatch.setitem(archives, part, (archive.name, md5(archive)))
    splits = data.load("imagenet", root, download=True)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [196, 4, 6]
    assert labels(splits.test) == [0, 0, 0, 1, 1, 1]


def write_images(folder, classes: int, count: int) -> None:
    for label in range(classes):
        for index in range(count):
            write_image(folder / f"class{label}" / f"{index}.png", (label * 40, index, 0))


def test_an_image_folder_without_splits_is_split(tmp_path):
    write_images(tmp_path, 3, 20)
    splits = data.load(f"imagefolder:{tmp_path}", image_size=24)
    parts = [paths(split) for split in (splits.train, splits.val, splits.test)]
    assert set.union(*parts) == {str(path) for path in tmp_path.rglob("*.png")}
    assert sum(map(len, parts)) == 60
    assert splits.classes == ("class0", "class1", "class2")
    assert splits.val[0][0].shape == (3, 24, 24)
    again = data.load(f"imagefolder:{tmp_path}")
    assert [paths(split) for split in (again.train, again.val, again.test)] == parts


def test_the_path_of_an_image_folder_is_below_the_data_root(tmp_path):
    write_images(tmp_path / "things", 3, 20)
    assert len(data.load("imagefolder:things", tmp_path).classes) == 3
    assert calibration_images("imagefolder:things/class0", 9, tmp_path, 16).shape == (9, 3, 16, 16)
    absolute = f"imagefolder:{tmp_path / 'things'}"
    assert len(data.load(absolute, tmp_path / "elsewhere").classes) == 3


def test_an_image_folder_keeps_the_splits_it_has(tmp_path):
    for name, count in [("train", 20), ("val", 2), ("test", 3)]:
        write_images(tmp_path / name, 3, count)
    splits = data.load(f"imagefolder:{tmp_path}", image_size=24)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [60, 6, 9]
    write_images(tmp_path / "other" / "train", 3, 20)
    write_images(tmp_path / "other" / "test", 2, 20)
    with pytest.raises(DataError, match="1 are in one of them only, such as class2"):
        data.load(f"imagefolder:{tmp_path / 'other'}")


def test_an_image_folder_that_is_absent_empty_or_too_small_is_refused(tmp_path):
    with pytest.raises(DataError, match="no image folder"):
        data.load(f"imagefolder:{tmp_path / 'absent'}")
    with pytest.raises(DataError, match="no images in class folders"):
        data.load(f"imagefolder:{tmp_path}")
    (tmp_path / "empty-class").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        data.load(f"imagefolder:{tmp_path}")
    write_images(tmp_path / "small", 3, 1)
    with pytest.raises(DataError, match="too few"):
        data.load(f"imagefolder:{tmp_path / 'small'}")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    write_images(tmp_path, 1, 20)
    for path in (tmp_path / "class0").iterdir():
        path.unlink()
        Image.new(mode, (40, 30)).save(path.with_suffix(".jpg" if mode == "CMYK" else ".png"))
    assert data.load(f"imagefolder:{tmp_path}", image_size=24).val[0][0].shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "did you mean digits"),
        ("CIFAR-10", "did you mean cifar10"),
        ("fashion_mnist", "did you mean fashion-mnist"),
        ("imagefolder:", "did you mean imagefolder:PATH"),
        ("xyzzy", "give one of imagenet, flowers102, cifar10"),
    ],
)
def test_an_unknown_name_suggests_the_nearest_and_lists_all(name, message):
    with pytest.raises(DataError, match=message) as error:
        data.load(name)
    assert all(known in str(error.value) for known in data.NAMES)


def test_a_folder_given_as_name_is_told_from_a_name(tmp_path):
    with pytest.raises(DataError, match=f"imagefolder:{tmp_path}"):
        data.load(str(tmp_path))


def test_sizes_out_of_range_are_refused():
    for size in (2, "7x9", (9, 7)):
        with pytest.raises(ConfigError, match="8 or more pixels a side"):
            data.load("digits", image_size=size)
    with pytest.raises(ConfigError, match="'wide'"):
        calibration_images("digits", 9, image_size="wide")
    with pytest.raises(DataError, match="fewer than one batch of 5000"):
        ImageData("digits", batch_size=5000)


def test_the_normalisation_of_weights_replaces_that_of_the_set(tmp_path):
    write_images(tmp_path, 1, 20)
    half = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    image, _ = data.load(f"imagefolder:{tmp_path}", image_size=8, normalisation=half).val[0]
    assert image[2].unique().tolist() == [-2]
    grey = data.load("digits", normalisation=half).val[0][0]
    assert torch.equal(grey, data.load("digits").val[0][0])


# Which part of an image is seen


UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
RED, GREEN, BLUE, WHITE = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)


def corners(image) -> list[tuple[int, ...]]:
    """The colours of the four, from the upper left one on, by rows."""
    return [tuple(image[:, y, x].round().int().tolist()) for y in (0, -1) for x in (0, -1)]


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> str:
    """Of 90x160 pixels, grey, with a corner each of red, green, blue and white."""
    folder = tmp_path_factory.mktemp("frames")
    pixels = np.full((90, 160, 3), 100, np.uint8)
    # Narrower than the margin that is usually cut off, a sixteenth of a side.
    for y, x, colour in ((0, 0, RED), (0, 154, GREEN), (86, 0, BLUE), (86, 154, WHITE)):
        pixels[y : y + 4, x : x + 6] = 255 * np.array(colour)
    for index in range(40):
        path = folder / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return f"imagefolder:{folder}"


@pytest.mark.parametrize("size", [(45, 80), "45x80", (80, 45), 48])
def test_whole_frames_keep_their_corners_wherever_they_are_prepared(frames, size, tmp_path):
    upright = [RED, GREEN, BLUE, WHITE]
    options = {"image_size": size, "whole": True, "normalisation": UNCHANGED}
    splits = data.load(frames, **options)
    assert splits.val[0][0].shape[1:] == splits.image_size
    assert corners(splits.val[0][0]) == corners(splits.test[0][0]) == upright
    mirrored = [GREEN, RED, WHITE, BLUE]
    seen = [corners(image) for image in epoch_of(frames, **options)]
    assert {tuple(view) for view in seen} == {tuple(upright), tuple(mirrored)}
    assert 4 < seen.count(mirrored) < len(seen) - 4
    in_place = epoch_of(frames, **options, in_place=True)
    assert all(corners(image) == upright for image in in_place)
    assert corners(calibration_images(frames, 3, **options)[2]) == upright
    assert corners(data.validation_images(frames, 3, **options)[0][2]) == upright
    (source,) = data.load(frames).val.source.images[np.array([0])]._paths
    (tmp_path / "0.png").write_bytes(Path(source.decode()).read_bytes())
    unlabelled = calibration_images(f"imagefolder:{tmp_path}", 1, **options)
    assert corners(unlabelled[0]) == upright
    del options["whole"]
    cut = calibration_images(frames, 1, **options)[0]
    assert torch.equal(cut, data.load(frames, **options).val[0][0])
    assert corners(cut) == [(0, 0, 0)] * 4


def epoch_of(name, **options) -> torch.Tensor:
    """All images of an epoch of training."""
    loader = ImageData(name, batch_size=16, **options).train_dataloader()
    loader.sampler.set_epoch(0)
    return torch.cat([images for images, _ in loader])


def test_a_whole_frame_is_what_pillow_makes_of_it(frames):
    image, _ = data.load(frames, image_size=(30, 70), whole=True, normalisation=UNCHANGED).val[0]
    original = data.load(frames).val.source.images[0]
    expected = np.asarray(original.resize((70, 30), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal((image * 255).round().byte().permute(1, 2, 0), expected)


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (160, 160)])
@pytest.mark.parametrize("size", [(56, 112), (112, 56), (77, 77)])
def test_the_centre_is_cut_out_with_the_customary_margin_and_undistorted(tmp_path, shape, size):
    """A white square in the middle of the image is a square in what is prepared of it."""
    pixels = np.zeros((*shape, 3), np.uint8)
    middle, side = (shape[0] // 2, shape[1] // 2), 40
    pixels[middle[0] - 20 : middle[0] + 20, middle[1] - 20 : middle[1] + 20] = 255
    for index in range(20):
        path = tmp_path / "class0" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    splits = data.load(f"imagefolder:{tmp_path}", image_size=size, normalisation=UNCHANGED)
    image, _ = splits.val[0]
    assert image.shape == (3, *size)
    scale = max(size[0] * 8 / 7 / shape[0], size[1] * 8 / 7 / shape[1])
    for across in (0, 1):
        profile = image[0].amax(across)
        inside = torch.nonzero(profile > 0.5).flatten()
        assert len(inside) == pytest.approx(side * scale, abs=1.5)
        assert float(inside.double().mean()) == pytest.approx((len(profile) - 1) / 2, abs=1.5)


@pytest.mark.parametrize("side", [24, 31, 224])
def test_of_squares_the_centre_is_what_it_has_always_been(tmp_path, side):
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(40, 61), (61, 40), (50, 50), (300, 211), (17, 90)] * 4):
        path = tmp_path / "class0" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)
    val = data.load(f"imagefolder:{tmp_path}", image_size=side, normalisation=UNCHANGED).test
    usual = v2.Compose([v2.Resize(side * 8 // 7), v2.CenterCrop(side), v2.PILToTensor()])
    for index in range(len(val)):
        expected = usual(val.source.images[index])
        assert torch.equal((val[index][0] * 255).round().byte(), expected)


@pytest.mark.parametrize("size", [(36, 64), (64, 36), (48, 48)])
def test_random_crops_have_the_shape_of_the_input_but_for_the_customary_third(tmp_path, size):
    """The colours of an image tell its coordinates, and so how far a crop is stretched."""
    height, width = 4 * size[0], 4 * size[1]
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([red, green, 0 * red], -1).round().astype(np.uint8)
    for index in range(100):
        path = tmp_path / "class0" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    images = epoch_of(f"imagefolder:{tmp_path}", image_size=size, normalisation=UNCHANGED)
    across = (images[:, 0, :, -1] - images[:, 0, :, 0]).mean(1).abs() * width / size[1]
    down = (images[:, 1, -1] - images[:, 1, 0]).mean(1) * height / size[0]
    stretched = across / down
    assert 0.7 < float(stretched.min()) < 0.85
    assert 1.2 < float(stretched.max()) < 1.43


def test_small_images_are_whole_in_evaluation_and_with_the_option_in_training(cifar10):
    options = {"root": cifar10, "image_size": (24, 40), "normalisation": UNCHANGED}
    splits = data.load("cifar10", **options)
    whole = data.load("cifar10", **options, whole=True)
    assert splits.test[3][0].shape == (3, 24, 40)
    assert torch.equal(splits.test[3][0], whole.test[3][0])
    plain = ImageSet(whole.train.source, whole.test.prepare, whole.test.finish)
    mirrored = 0
    for index in range(40):
        image, own = whole.train[index][0], plain[index][0]
        flipped = torch.allclose(image, own.flip(2), atol=1 / 255)
        assert flipped or torch.equal(image, own)
        mirrored += flipped
    assert 5 < mirrored < 35


# In which order they are drawn


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """60 training images that differ from each other and from their mirror images."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / f"class{label}").mkdir()
        for index in range(25):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")
    return f"imagefolder:{folder}"


def epoch(name: str, epoch: int = 1, seed: int = 0, workers: int = 0, **options):
    source = ImageData(name, None, 16, options.pop("batch_size", 8), workers, seed, **options)
    loader = source.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return drawn(loader)


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(photos):
    first = epoch(photos)
    torch.manual_seed(7)
    assert equal(epoch(photos), first)
    assert equal(epoch(photos, workers=2), first)
    for other in (epoch(photos, epoch=2), epoch(photos, seed=1)):
        assert not torch.equal(other[0][1], first[0][1])
        assert not torch.equal(other[0][0], first[0][0])


def test_an_image_is_augmented_anew_in_every_epoch(photos):
    source = ImageData(photos, None, 16, 8)
    loader = source.train_dataloader()
    shown = []
    for number in range(2):
        loader.sampler.set_epoch(number)
        order = [draw.image for draw in loader.sampler][:56]
        images = torch.cat([images for images, _ in loader])
        shown.append(dict(zip(order, images, strict=True)))
    both = shown[0].keys() & shown[1].keys()
    assert len(both) > 40
    assert not any(torch.equal(shown[0][index], shown[1][index]) for index in both)


def test_augmentation_leaves_the_random_state_of_training_be(photos):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    epoch(photos)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_was_left(photos, workers):
    loader = ImageData(photos, None, 16, 8, workers).train_dataloader()
    loader.sampler.set_epoch(4)
    whole = drawn(loader)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()

    resumed = ImageData(photos, None, 16, 8, workers).train_dataloader()
    resumed.load_state_dict(state)
    assert len(resumed) == len(whole)
    resumed.sampler.set_epoch(4)
    assert equal(drawn(resumed), whole[3:])
    resumed.sampler.set_epoch(5)
    assert len(drawn(resumed)) == len(whole)


def test_a_batch_of_many_is_each_of_its_images():
    source = ImageData("digits", None, 16, 64)
    images, labels = next(iter(source.val_dataloader()))
    for index in range(64):
        image, label = source.splits.val[index]
        assert torch.equal(images[index], image)
        assert labels[index] == label


def test_ranks_share_the_training_images_and_draw_as_many_batches():
    orders = [TrainingOrder(103, seed=5, rank=rank, ranks=4) for rank in range(4)]
    for order in orders:
        order.set_epoch(2)
    shares = [[draw.image for draw in order] for order in orders]
    assert [len(share) for share in shares] == [len(order) for order in orders] == [25] * 4
    assert len({index for share in shares for index in share}) == 100
    alone = TrainingOrder(103, seed=5)
    alone.set_epoch(2)
    seeds = dict(alone)
    assert all(seeds[draw.image] == draw.seed for order in orders for draw in order)


@given(
    count=st.integers(1, 300),
    ranks=st.integers(1, 9),
    batch_size=st.integers(2, 70),
)
def test_every_image_is_evaluated_once_in_as_many_batches_on_every_rank(count, ranks, batch_size):
    if count < ranks:
        return
    size = even_batch_size(count, ranks, batch_size)
    orders = [EvaluationOrder(count, rank, ranks) for rank in range(ranks)]
    assert sorted(draw.image for order in orders for draw in order) == list(range(count))
    assert len({-(-len(order) // size) for order in orders}) == 1
    assert batch_size <= size
    assert ranks > 1 or size == batch_size


def test_data_can_be_sent_to_workers_that_are_started_anew(photos):
    for name in (photos, "digits"):
        images = data.load(name, image_size=16).val
        again = pickle.loads(pickle.dumps(images))
        assert torch.equal(again[3][0], images[3][0])


def test_a_rank_gets_its_share_from_the_trainer():
    source = ImageData("digits", None, 8, 100)
    source.trainer = SimpleNamespace(global_rank=1, world_size=2)
    assert sum(len(labels) for _, labels in source.test_dataloader()) == 225
    assert len(source.train_dataloader()) == 6
    source.trainer = SimpleNamespace(global_rank=1, world_size=20)
    with pytest.raises(DataError, match="60 for each of 20 processes"):
        source.train_dataloader()
    source.trainer = SimpleNamespace(global_rank=1, world_size=200)
    with pytest.raises(DataError, match="validation split of digits has 135 images"):
        source.val_dataloader()


def test_training_never_draws_a_batch_that_is_smaller_than_asked(photos):
    assert {len(labels) for _, labels in epoch(photos, batch_size=7)} == {7}


# Images that cannot be read


@pytest.fixture
def damaged(tmp_path):
    """An image folder of 3 x 20 training and 20 validation images, of which 1 each is damaged."""
    for split, count in (("train", 20), ("val", 7), ("test", 7)):
        write_images(tmp_path / split, 3, count)
    truncated = tmp_path / "train" / "class1" / "3.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    (tmp_path / "val" / "class0" / "0.png").write_text("no image")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_replaced_in_training_and_left_out_of_evaluation(
    damaged, workers, caplog
):
    source = ImageData(f"imagefolder:{damaged}", None, 16, 10, workers)
    training = drawn(source.train_dataloader())
    assert re.search(r"1 of the 60 images of the training split; .*class1/3\.png", caplog.text)
    assert [len(labels) for _, labels in training] == [10] * 6
    assert len(torch.cat([images for images, _ in training]).unique(dim=0)) < 60
    assert equal(training, drawn(source.train_dataloader()))
    validation = drawn(source.val_dataloader())
    assert re.search(r"1 of the 21 images of the validation split; .*class0/0\.png", caplog.text)
    assert sum(len(labels) for _, labels in validation) == 20
    assert source.example_input.shape == (1, 3, 16, 16)


def test_damaged_images_are_reported_when_there_are_more(damaged, caplog):
    source = ImageData(f"imagefolder:{damaged}", None, 16, 10, max_unreadable=0.05)
    loader = source.train_dataloader()
    for number in range(2):
        loader.sampler.set_epoch(number)
        drawn(loader)
    assert len(caplog.records) == 1
    (damaged / "train" / "class2" / "5.png").unlink()
    drawn(loader)
    assert [record.args[0].split()[0] for record in caplog.records] == ["1", "2"]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_images_stop_the_run_with_one_error(damaged, workers, caplog):
    (damaged / "train" / "class2" / "5.png").write_bytes(b"")

    def training(**options):
        source = ImageData(f"imagefolder:{damaged}", None, 16, 10, workers, **options)
        return drawn(source.train_dataloader())

    with pytest.raises(DataError, match=r"2 of the 60 images of the training split") as error:
        training()
    assert "\n" not in str(error.value)
    training(max_unreadable=0.02)
    assert "2 of the 60" in caplog.text
    with pytest.raises(DataError, match="1 of the 60"):
        training(max_unreadable=0)


def test_the_command_trains_beside_a_damaged_image(damaged, tmp_path):
    arguments = ["--model", "semisparse/resnet8", "--data", f"imagefolder:{damaged}"]
    arguments += ["--image-size", "16", "--batch-size", "30", "--epochs", "1"]
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", *arguments, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert "test_accuracy" in json.loads(result.stdout)
    (damaged / "train" / "class2" / "5.png").write_bytes(b"")
    refused = CliRunner().invoke(app, ["train", *arguments, "--out", str(tmp_path / "other")])
    assert refused.exit_code == 1
    assert "2 of the 60 images of the training split" in refused.stderr
    assert "Traceback" not in refused.stderr
    allowed = [*arguments, "--max-unreadable", "0.02", "--out", str(tmp_path / "other")]
    result = CliRunner().invoke(app, ["train", *allowed])
    assert result.exit_code == 0, result.output


def test_as_many_images_may_be_left_out_of_calibration_as_is_said(damaged):
    name = f"imagefolder:{damaged}"
    assert len(data.calibration_images(name, 60, None, 16)) == 59
    with pytest.raises(DataError, match="max_unreadable lets only 0"):
        data.calibration_images(name, 60, None, 16, max_unreadable=0)
    images, labels, classes = data.validation_images(name, 21, None, 16)
    assert (len(images), len(labels), classes) == (20, 20, 3)
    with pytest.raises(DataError, match="1 of the 21 images of the validation sample"):
        data.validation_images(name, 21, None, 16, max_unreadable=0)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\xff" * 64])
def test_whatever_is_wrong_with_a_file_is_one_error(tmp_path, content):
    write_images(tmp_path, 1, 20)
    for path in (tmp_path / "class0").iterdir():
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"class0/\d+\.png is no image that can be read"):
        data.load(f"imagefolder:{tmp_path}").val[0]


# Images without labels


def test_calibration_images_are_the_training_split_as_it_is_evaluated(photos):
    images = calibration_images(photos, 50, image_size=16)
    assert images.shape == (50, 3, 16, 16)
    assert torch.equal(calibration_images(photos, 50, image_size=16, workers=2), images)
    splits = data.load(photos, image_size=16)
    assert len(calibration_images(photos, 999, image_size=16)) == len(splits.train)
    prepare, finish = splits.val.prepare, splits.val.finish
    plain = {
        finish(prepare(splits.train.source.images[index])[None]).numpy().tobytes()
        for index in range(len(splits.train))
    }
    assert all(image[None].numpy().tobytes() in plain for image in images)


def test_calibration_needs_no_class_folders(tmp_path):
    for index in range(5):
        write_image(tmp_path / f"{index}.jpeg", (index, 0, 0))
    (tmp_path / "notes.txt").write_text("no image")
    images = calibration_images(f"imagefolder:{tmp_path}", 100, image_size=16)
    assert images.shape == (5, 3, 16, 16)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        calibration_images(f"imagefolder:{tmp_path}", 100)
    write_image(tmp_path / "train" / "0.webp")
    images = calibration_images(f"imagefolder:{tmp_path}", 100, image_size=16)
    assert len(images) == 1
    with pytest.raises(DataError, match="at least 1"):
        calibration_images("digits", 0)


def test_calibration_works_for_every_kind_of_set():
    assert calibration_images("digits", 100, image_size=8).shape == (100, 1, 8, 8)
