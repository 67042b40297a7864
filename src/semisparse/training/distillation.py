"""Learning from a trained model (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from semisparse.errors import ConfigError, ModelError
from semisparse.training import models, saved
from semisparse.training.data import ImageData, Normalisation


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of `T^2 KL(softmax(teacher / T) || softmax(student / T))`.

    Both are logits `[N, classes]`, or `[N, classes, ...]`, and then it is the mean over positions
    too. The factor keeps the gradient's size whatever T is (section 2 of the paper).
    """
    loss = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="none",
        log_target=True,
    )
    return loss.sum(1).mean() * temperature**2


class Teacher:
    """A trained model, `[N, C, H, W] -> [N, classes]`, that takes the student's images.

    Not a module, so that it is in no checkpoint of the student, is not trained, and keeps to
    evaluation mode. `own` is the normalisation that it was trained with, `given` that of the
    images it will get.
    """

    def __init__(self, model: nn.Module, own: Normalisation, given: Normalisation) -> None:
        self._model = model.eval().requires_grad_(False)
        (own_mean, own_std), (mean, std) = (map(_by_channel, own), map(_by_channel, given))
        self._scale = std / own_std
        self._shift = (mean - own_mean) / own_std

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self._model.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        logits: Tensor = self._model(images * self._scale + self._shift)
        return logits

    def __deepcopy__(self, memo: Any) -> Teacher:
        # A copy of the student, such as that of its averaged weights, has the same teacher.
        return self


def load_teacher(name: str, weights: str | Path | None, data: ImageData) -> Teacher:
    """The teacher of a run on `data`.

    `name` is the folder of a finished run, or a model as for `models.create`, which then needs
    `weights` of as many classes and channels as the data has; a `module.path:factory` may bring
    its own.

    Raises `ConfigError` for a run that is not finished or comes with other weights, and
    `ModelError` for a teacher that does not fit the data.
    """
    own: Normalisation | None
    if Path(name).is_dir():
        saved.check_own_weights(Path(name), weights, "teacher_weights")
        run = saved.FinishedRun(Path(name))
        model, own = run.masked(), run.normalisation
    else:
        if models.random_weights(name, weights):
            raise ConfigError(
                f"The teacher {name} is not the folder of a run, and a model of that name would "
                "have random weights; give teacher_weights, a path or DEFAULT."
            )
        model = models.create(name, data.num_classes, weights, data.channels, exact=True)
        own = models.normalisation(name, weights)
    teacher = Teacher(model, own or data.normalisation, data.normalisation)
    _check(name, teacher, data)
    return teacher


def _check(name: str, teacher: Teacher, data: ImageData) -> None:
    shape = tuple(data.example_input.shape)
    try:
        logits = teacher(data.example_input)
    except Exception as error:
        raise ModelError(
            f"The teacher {name} cannot take images of {shape} ({error}); give another teacher or "
            "image size."
        ) from error
    if logits.shape != (1, data.num_classes):
        raise ModelError(
            f"The teacher {name} returns {tuple(logits.shape)} for one image, but the data has "
            f"{data.num_classes} classes; give a teacher of the same classes."
        )


def _by_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]
