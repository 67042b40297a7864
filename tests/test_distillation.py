from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from rich.progress import Progress
from scipy.special import log_softmax, softmax
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, ModelError
from semisparse.layers import masked_layers
from semisparse.training import models, run, saved
from semisparse.training.data import ImageData
from semisparse.training.distillation import Teacher, distillation_loss, load_teacher
from semisparse.training.module import Classifier
from semisparse.training.settings import TrainSettings

QUICK = {"model": "semisparse/resnet8", "data": "digits", "image_size": 16, "batch_size": 160}


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton's formula in float64, term by term."""
    p = softmax(teacher / temperature, axis=1)
    log_q = log_softmax(student / temperature, axis=1)
    return temperature**2 * float((p * (np.log(p) - log_q)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_the_loss_is_the_divergence_of_the_softened_outputs(temperature):
    rng = np.random.default_rng(0)
    student, teacher = 3 * rng.standard_normal((2, 16, 10))
    loss = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(loss) == pytest.approx(divergence(student, teacher, temperature), rel=1e-12)
    assert (
        float(distillation_loss(torch.tensor(teacher), torch.tensor(teacher), temperature)) < 1e-9
    )


def test_in_the_limit_of_high_temperature_the_gradient_matches_logits():
    """Section 2.1 of the paper: (v - z) / classes, for logits of zero mean."""
    # Fixed: where two logits nearly agree, what the limit leaves out is more than a thousandth.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 10, dtype=torch.float64, generator=generator)
    student, teacher = logits - logits.mean(-1, keepdim=True)
    student.requires_grad_()
    distillation_loss(student, teacher, 1e4).backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 10, rtol=1e-3, atol=0)


class Mean(nn.Module):
    """Logits that are the means of the channels, and a batch norm to see its mode by."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.5)

    def forward(self, x):
        self.norm(x)
        return x.mean((2, 3))


def test_a_teacher_gets_images_as_it_was_trained_with():
    ours = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    its = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    pixels = torch.rand(4, 3, 8, 8)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    model = Mean().train()
    found = Teacher(model, its, ours)(normalised(*ours))
    torch.testing.assert_close(found, normalised(*its).mean((2, 3)))
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def test_a_teacher_is_no_part_of_its_student():
    student, model = (models.create("semisparse/resnet8", 10) for _ in range(2))
    normalisation = ((0.5,), (0.2,))
    teacher = Teacher(model, normalisation, normalisation)
    options = TrainSettings(**QUICK)
    module = Classifier(student, 10, options, teacher).train()
    assert not [name for name in module.state_dict() if "teacher" in name]
    assert len(list(module.parameters())) == len(list(student.parameters()))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert copy.deepcopy(module).teacher is teacher


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_of_a_step_mixes_labels_and_teacher(alpha):
    student, model = (models.create("semisparse/resnet8", 10).double() for _ in range(2))
    normalisation = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    teacher = Teacher(model, normalisation, normalisation)
    options = TrainSettings(**QUICK, distill_alpha=alpha, temperature=3.0, label_smoothing=0.1)
    module = Classifier(student, 10, options, teacher).eval()
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.arange(8)
    module.log = lambda *_, **__: None
    loss = module.training_step((images, labels), 0)
    with torch.no_grad():
        ours, theirs = student(images).numpy(), model(images).numpy()
    target = 0.9 * np.eye(10)[:8] + 0.01
    hard = -(target * log_softmax(ours, axis=1)).sum(axis=1).mean()
    expected = (1 - alpha) * hard + alpha * divergence(ours, theirs, 3.0)
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    loss.backward()
    assert student.fc.weight.grad is not None
    assert model.fc.weight.grad is None


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dense"
    # Long enough for the statistics of batch norm to follow the weights.
    run.train(TrainSettings(**QUICK, epochs=6), out, progress=Progress(disable=True))
    return out


def test_a_finished_run_teaches_its_sparse_self(dense, tmp_path):
    masks = SparsityConfig(0.3)
    out = tmp_path / "student"
    options = TrainSettings(
        **{**QUICK, "model": str(dense)},
        sparsity=masks,
        epochs=2,
        learning_rate=1e-3,
        teacher=str(dense),
        distill_alpha=1.0,
        ema=0.9,
    )
    run.train(options, out, progress=Progress(disable=True))
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "teacher" in name]
    # From its own weights, and with no labels in the loss, it stays near what it was.
    student, example, _ = saved.load_run(out)
    teacher, _, _ = saved.load_run(dense)
    assert masked_layers(student)
    data = ImageData("digits", image_size=16)
    images, _ = next(iter(data.val_dataloader()))
    with torch.no_grad():
        agreement = (student(images).argmax(1) == teacher(images).argmax(1)).double().mean()
    assert agreement > 0.8
    assert example.shape == (1, 1, 16, 16)
    # Its masks are of one image size.
    with pytest.raises(ModelError, match="cannot take images"):
        load_teacher(str(out), None, ImageData("digits", image_size=20))


@pytest.fixture(scope="module")
def digits():
    return ImageData("digits", image_size=16)


def test_teachers_that_cannot_teach_are_refused(dense, digits, tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save(models.create("semisparse/resnet8", 7, input_channels=1).state_dict(), weights)
    for name, file, error, message in [
        ("semisparse/resnet8", None, ConfigError, "give teacher_weights"),
        ("semisparse/resnet9", weights, ModelError, "did you mean"),
        ("semisparse/resnet8", weights, ModelError, r"fc\.weight .*\(7, 64\).*\(10, 64\)"),
        (str(dense), weights, ConfigError, "give one of them"),
        (str(tmp_path), None, ConfigError, "not a run folder"),
        ("torch.nn:Flatten", None, ModelError, "10 classes"),
    ]:
        with pytest.raises(error, match=message):
            load_teacher(name, file, digits)


def test_a_run_of_other_classes_is_no_teacher(dense, digits, tmp_path):
    (tmp_path / "config.json").write_bytes((dense / "config.json").read_bytes())
    content = torch.load(dense / "model.pt", weights_only=True)
    content["model"]["fc.weight"] = content["model"]["fc.weight"][:7]
    content["model"]["fc.bias"] = content["model"]["fc.bias"][:7]
    torch.save({**content, "num_classes": 7}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"\(1, 7\) .* 10 classes"):
        load_teacher(str(tmp_path), None, digits)


def test_the_normalisation_of_a_run_is_kept_with_its_model(dense, digits):
    assert saved.FinishedRun(dense).normalisation == digits.normalisation
