from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from semisparse.errors import DataError
from semisparse.training import data
from semisparse.training.data import ImageData


def indices(split) -> set[int]:
    return set(split.indices)


def test_digits_are_split_once_and_for_all():
    first, second = data.load("digits"), data.load("digits")
    parts = [indices(split) for split in (first.train, first.val, first.test)]
    assert [indices(s) for s in (second.train, second.val, second.test)] == parts
    assert set.union(*parts) == set(range(1797))
    assert sum(map(len, parts)) == 1797
    assert min(map(len, parts)) > 100


def test_digits_are_upsampled_and_normalised():
    splits = data.load("digits", image_size=16)
    image, label = splits.train[0]
    original = load_digits()
    assert image.shape == (1, 16, 16)
    assert label == original.target[splits.train.indices[0]]
    pixels = torch.stack([splits.train[index][0] for index in range(200)])
    assert abs(float(pixels.mean())) < 0.1
    assert 0.7 < float(pixels.std()) < 1.3


def test_training_order_depends_on_seed_and_epoch_alone():
    def labels(seed: int, epoch: int) -> list[int]:
        loader = ImageData("digits", image_size=8, batch_size=128, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [int(label) for _, batch in loader for label in batch]

    assert labels(0, 1) == labels(0, 1)
    assert labels(0, 1) != labels(0, 2)
    assert labels(0, 1) != labels(1, 1)


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
    assert indices(splits.train).isdisjoint(indices(splits.val))
    image, label = splits.test[13]
    assert (image.shape, label) == ((1, 32, 32), 3)


def test_fashion_mnist_that_is_absent_or_damaged_is_refused(tmp_path):
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        data.load("fashion-mnist", tmp_path)
    write_idx(tmp_path, 200, packed=True)
    whole = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    for damaged in (whole[: len(whole) // 2], gzip.compress(b"\0\0\x08"), gzip.compress(b"")):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="train-images-idx3-ubyte"):
            data.load("fashion-mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(gzip.decompress(whole)[:-1])
    with pytest.raises(DataError, match="whole IDX file"):
        data.load("fashion-mnist", tmp_path)


def write_images(folder, classes: int, count: int) -> None:
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 30), (label * 40, index, 0)).save(
                folder / f"class{label}" / f"{index}.png"
            )


def test_an_image_folder_without_splits_is_split(tmp_path):
    write_images(tmp_path, 3, 20)
    splits = data.load(f"imagefolder:{tmp_path}", image_size=24)
    parts = [indices(split) for split in (splits.train, splits.val, splits.test)]
    assert set.union(*parts) == set(range(60))
    assert sum(map(len, parts)) == 60
    assert splits.classes == ("class0", "class1", "class2")
    assert splits.val[0][0].shape == (3, 24, 24)


def test_an_image_folder_keeps_the_splits_it_has(tmp_path):
    for name, count in [("train", 20), ("val", 2), ("test", 3)]:
        write_images(tmp_path / name, 3, count)
    splits = data.load(f"imagefolder:{tmp_path}", image_size=24)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [60, 6, 9]
    write_images(tmp_path / "other" / "train", 3, 20)
    write_images(tmp_path / "other" / "test", 2, 20)
    with pytest.raises(DataError, match="same folders"):
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


def test_unknown_data_and_sizes_are_refused():
    with pytest.raises(DataError, match="did you mean digits"):
        data.load("digit")
    with pytest.raises(DataError, match="Image size 2"):
        data.load("digits", image_size=2)
    with pytest.raises(DataError, match="fewer than one batch of 5000"):
        ImageData("digits", batch_size=5000)
