from __future__ import annotations

import copy

import pytest
import torch

# Before lightning, which imports torchvision.
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, ModelError
from semisparse.importance import measure
from semisparse.layers import masked_layers
from semisparse.training.callback import SparsityCallback

import lightning.pytorch as lightning  # isort: skip


class Plain(lightning.LightningModule):
    """A user's own module, which knows nothing of masks."""

    def __init__(self, loss_key: str | None = "loss") -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3, stride=2)
        )
        self.loss_key = loss_key
        self.sparsities: list[float] = []

    def forward(self, x):
        return self.backbone(x)

    def training_step(self, batch, batch_idx):
        layer = next(iter(masked_layers(self).values()))
        self.sparsities.append(1 - float(layer.mask.float().mean()))
        loss = self(batch).square().mean()
        return {self.loss_key: loss} if self.loss_key else None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def loader(count: int = 24) -> torch.utils.data.DataLoader:
    images = torch.rand(count, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(images, batch_size=2)


def fit(module: Plain, callback: SparsityCallback, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        **{"max_epochs": 2, **options},
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


CONFIG = SparsityConfig(0.4, begin=0.0, end=0.5)


def test_masks_follow_the_schedule_under_a_bare_trainer():
    module, callback = Plain(), SparsityCallback(CONFIG, torch.zeros(1, 3, 10, 12))
    trainer = fit(module, callback)
    assert set(callback.sparsifier.masks) == {"backbone.0", "backbone.2"}
    assert callback.sparsifier.frozen
    assert len(module.sparsities) == 24
    assert module.sparsities == sorted(module.sparsities)
    assert module.sparsities[0] == 0
    assert module.sparsities[12:] == pytest.approx([0.4] * 12)
    assert float(trainer.callback_metrics["sparsity"]) == pytest.approx(0.4)


def test_only_the_target_is_masked():
    module = Plain()
    module.example_input_array = torch.zeros(1, 3, 10, 12)
    callback = SparsityCallback(CONFIG, target="backbone")
    fit(module, callback)
    assert set(callback.sparsifier.masks) == {"0", "2"}


def test_accumulated_batches_share_a_draw():
    module, callback = Plain(), SparsityCallback(CONFIG, torch.zeros(1, 3, 10, 12))
    fit(module, callback, accumulate_grad_batches=4)
    steps = [module.sparsities[index : index + 4] for index in range(0, 24, 4)]
    assert all(len(set(step)) == 1 for step in steps)
    assert len({step[0] for step in steps}) == 4
    assert callback.sparsifier.total_steps == 6


def test_masks_that_the_schedule_left_open_are_frozen_at_the_end():
    callback = SparsityCallback(SparsityConfig(0.4, end=1.0), torch.zeros(1, 3, 10, 12))
    fit(Plain(), callback)
    assert callback.sparsifier.frozen
    assert callback.sparsifier.sparsities["backbone.0"] == pytest.approx(0.4)


def test_a_checkpoint_carries_the_masks_on(tmp_path):
    def setting():
        torch.manual_seed(0)
        return Plain(), SparsityCallback(CONFIG, torch.zeros(1, 3, 10, 12))

    module, whole = setting()
    fit(module, whole, max_epochs=4)

    module, first = setting()
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[first, lightning.callbacks.ModelCheckpoint(tmp_path, "last"), Stop()],
    )
    trainer.fit(module, loader())
    assert trainer.current_epoch == 1
    module, second = setting()
    fit(module, second, ckpt_path=tmp_path / "last.ckpt", max_epochs=4)
    for name, mask in whole.sparsifier.masks.items():
        assert torch.equal(second.sparsifier.masks[name], mask), name


class Stop(lightning.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_importance_is_measured_within_the_region_and_without_masks():
    images = torch.randn(8, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    config = SparsityConfig(0.2, importance=1, region=["#......."])
    module = Plain()
    expected = measure(copy.deepcopy(module), images, region=config.region)
    callback = SparsityCallback(config, torch.zeros(1, 3, 10, 12), images=lambda: images)
    fit(module, callback, max_epochs=1)
    assert callback.sparsifier is not None
    found = callback.sparsifier.importance
    assert found is not None
    assert found.keys() == expected.keys()
    for plane, values in expected.items():
        assert torch.allclose(found[plane], values)


def test_what_it_needs_is_asked_for():
    with pytest.raises(ModelError, match="no example input"):
        fit(Plain(), SparsityCallback(CONFIG))
    example = torch.zeros(1, 3, 10, 12)
    with pytest.raises(ModelError, match="returned no loss"):
        fit(Plain(loss_key=None), SparsityCallback(CONFIG, example))
    with pytest.raises(ConfigError, match="max_epochs or max_steps"):
        fit(Plain(), SparsityCallback(CONFIG, example), max_epochs=-1)
    with pytest.raises(ModelError, match="not attached"):
        SparsityCallback(CONFIG, example).load_state_dict({"steps": 3})
