"""A trained model, of a run or by name, and the data that it wants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from semisparse.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from semisparse.image_size import AnySize
    from semisparse.training.data import Normalisation


@dataclass(frozen=True)
class Data:
    """Images prepared as for a model; all entries are as `training.data.load` takes them."""

    name: str
    root: str | None
    image_size: AnySize | None
    normalisation: Normalisation | None
    max_unreadable: float
    whole: bool

    def images(self, count: int) -> Tensor:
        """Some of the training split, without labels."""
        from semisparse.training.data import calibration_images

        return calibration_images(
            *(self.name, count, self.root, self.image_size),
            normalisation=self.normalisation,
            max_unreadable=self.max_unreadable,
            whole=self.whole,
        )

    def validation(self, count: int) -> tuple[Tensor, Tensor, int] | None:
        """Some of the validation split, their labels, and the number of classes.

        None for images without labels.
        """
        from semisparse.training.data import validation_images

        return validation_images(
            *(self.name, count, self.root, self.image_size),
            normalisation=self.normalisation,
            max_unreadable=self.max_unreadable,
            whole=self.whole,
        )


def load(
    model: str,
    weights: str | None,
    num_classes: int,
    data: str | None,
    data_root: str | None,
    image_size: AnySize | None,
    whole: bool | None,
    count: int,
    max_unreadable: float,
    *,
    option: str,
) -> tuple[nn.Module, Tensor, Data]:
    """The network in evaluation mode, up to `count` images, and where those are from.

    `model` is the folder of a run without masks, whose data and their preparation are the default,
    or a name as `training.models.create` takes it; `option` is what gives the data.
    """
    if Path(model).is_dir():
        prepared = (data, data_root, image_size, whole, count, max_unreadable)
        return _laid_out(*_of_run(Path(model), weights, *prepared))
    from semisparse.training import models

    if models.random_weights(model, weights):
        raise ConfigError(
            f"The weights of {model} would be random, so masks change nothing of worth; give "
            "--weights, DEFAULT or a file."
        )
    if data is None:
        raise ConfigError(f"There are no images for {model}; give {option}, a data set.")
    normalisation = models.normalisation(model, weights)
    source = Data(data, data_root, image_size, normalisation, max_unreadable, bool(whole))
    images = source.images(count)
    network = models.create(model, num_classes, weights, images.shape[1], exact=True)
    return _laid_out(network, images, source)


def _laid_out(network: nn.Module, images: Tensor, source: Data) -> tuple[nn.Module, Tensor, Data]:
    """To run, in the layout in which CPUs take statistics of batch norm four times as fast, and all
    else 10 to 20% faster.
    """
    import torch

    layout = torch.channels_last
    # The annotations of Module.to leave out that it takes a layout.
    network.eval().to(memory_format=layout)  # type: ignore[call-overload]
    return network, images.to(memory_format=layout), source


def _of_run(
    folder: Path,
    weights: str | None,
    data: str | None,
    data_root: str | None,
    image_size: AnySize | None,
    whole: bool | None,
    count: int,
    max_unreadable: float,
) -> tuple[nn.Module, Tensor, Data]:
    from semisparse.training import saved, settings

    run = settings.read(folder)
    saved.check_own_weights(folder, weights, "--weights")
    if run.sparsity is not None:
        raise ConfigError(
            f"The run {folder} has masks already; give a run without, or export this one with "
            f"semisparse export --run {folder}."
        )
    finished = saved.FinishedRun(folder)
    source = Data(
        data or run.data,
        data_root or (run.data_root if data is None else None),
        finished.image_size if image_size is None else image_size,
        finished.normalisation,
        max_unreadable,
        run.whole if whole is None else whole,
    )
    return finished.dense(), source.images(count), source
