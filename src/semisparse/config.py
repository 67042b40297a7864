"""What to mask, how much, and when: one frozen value with a JSON form."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from semisparse.errors import ConfigError

FORMAT_VERSION = 2
FILLS = ("bias", "nearest", "mean")
MASKS = ("blue-noise", "random")
SELECTIONS = ("best_loss", "last", "first")
# Defaults of that version which are others now.
_VERSION_1 = {"masks": "random", "begin": 0.1, "end": 0.9}


@dataclass(frozen=True, eq=False)
class SparsityConfig:
    """How a model is masked (arXiv 2309.06626, section 3).

    Layers are picked by rules. A rule is a kernel size (``"1x1"``), a type (``"depthwise"``,
    ``"grouped"``, ``"pointwise"``, ``"linear"``), a role (``"stem"``, ``"block-last"``,
    ``"shortcut"``; see :class:`semisparse.trace.Traced`), or a glob (``"layer4.*"``) for the whole
    name of a layer in ``model.named_modules()``. Where several rules of one mapping match a layer,
    the last one wins.

    Attributes:
        sparsity: fraction of the output positions of each layer that ends up masked, in (0, 1), or
            from 0 where there is a ``region``, within which it counts.
        skip: rules for layers to leave dense, whatever ``only`` and ``per_layer`` say.
        only: rules for the layers to mask, beside those of ``per_layer``; empty for all.
        per_layer: rule to a final sparsity in [0, 1) of its own; 0 leaves the layer dense, or what
            is inside of a ``region``.
        fill: what masked positions hold: ``"bias"`` (the paper's), ``"nearest"``, the linear
            part of the nearest computed position, or ``"mean"``, the mean of those of the two
            nearest, weighted by inverse distance. Nearest is the default because it keeps far
            more accuracy before fine-tuning than the bias (a small ResNet on Fashion-MNIST at 0.3,
            no training: 83.7% against 16.2%, dense 91.4%) and never less after it. The mean is
            nearer to the dense network, above all without training; on inverted residuals with
            ``only=["block-last"]`` at 0.5 and ``alternate`` by a tenth after fine-tuning. It costs
            a second pass over the layer's output, so it is meant for layers with narrow outputs,
            such as ``"block-last"``.
        per_layer_fill: rule to a fill of its own.
        block: side, in output positions, of the squares that are masked or computed as a whole,
            from 1 (the paper's), or ``"auto"``, what suits each layer's kernels (see
            :func:`semisparse.blocks.natural_block`). A dense 3x3 convolution of stride 1 runs
            fastest by Winograd's algorithm in tiles of 4x4 positions, of which only whole ones
            can be skipped: 4 adds the gain of the mask to that of the algorithm, finer masks give
            the latter up. The larger the blocks, the coarser the steps in which a small plane can
            meet ``sparsity``; a plane that one block covers stays dense.
        per_layer_block: rule to a block of its own.
        masks: how the masked positions of a draw are spread: ``"blue-noise"``, evenly, or
            ``"random"``, by one random score map pooled to the size of every layer (the paper's).
        importance: how much masks spare the positions that matter, where the subject has a fixed
            place in the images: the density of masked positions falls as the measured importance
            to the power of minus this number, from 0, which spreads them over the whole plane; 1
            is the other usual value (see :func:`semisparse.importance.measure`).
        alternate: whether residual blocks that add to the same plane take turns at the positions
            that they compute (see :func:`semisparse.masks.take_turn`): up to a sparsity of 0.5 the
            masks of the first two share no position, nor do those of the next two, and at 0.75
            four together compute every position once. Layers of one block have aligned masks as
            ever, layers outside of residual blocks those of the first block. For masks on residual
            blocks only, such as ``only=["block-last"]``:
            those take the outputs of a trained network a quarter less far away on one network and
            a tenth on another, fine-tuned a tenth. With masks on the other layers too they go
            half as far again and more (``docs/accuracy.md``).
        region: the part of the images that matters, where that is always the same, as for a camera
            that stays where it is: a picture of it in rows of ``"#"``, inside, and ``"."``,
            outside, of any size, over the whole input (see :func:`semisparse.region.rows_of`).
            Every layer that is not skipped, whatever ``only`` says, is masked from the first step
            on at all positions that do not overlap it, but for those of blocks that do, and
            ``sparsity`` is the fraction of the others. Empty for none.
        initial: sparsity before ``begin``, in [0, sparsity].
        begin, end: where the schedule starts and ends, as fractions of the training steps. At
            the end the masks freeze; with 1 they do so only on ``Sparsifier.freeze()``. Both 0,
            the default, is the first draw from the first step: a network that is trained already
            ends up better with fixed masks than with masks that change and grow until 0.9 (the
            paper's), by 1.3 points in the comparison of ``docs/accuracy.md``.
        power: exponent of the decay; see :func:`semisparse.schedules.sparsity_at`.
        frequency: steps between two draws of the masks.
        selection: which draw is kept: ``"best_loss"``, ``"last"`` or ``"first"``.
        seed: of the generator that draws the masks.

    Raises:
        ConfigError: if a value is out of range or of the wrong type.
    """

    sparsity: float
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    per_layer: Mapping[str, float] = field(default_factory=dict)
    fill: str = "nearest"
    per_layer_fill: Mapping[str, str] = field(default_factory=dict)
    block: int | str = 1
    per_layer_block: Mapping[str, int | str] = field(default_factory=dict)
    masks: str = "blue-noise"
    importance: float = 0.0
    alternate: bool = False
    region: tuple[str, ...] = ()
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.0
    power: float = 2.0
    frequency: int = 1
    selection: str = "best_loss"
    seed: int = 0

    def __post_init__(self) -> None:
        region = _region(self.region)
        sparsity = _number("sparsity", self.sparsity)
        if not 0 <= sparsity < 1:
            raise ConfigError(f"sparsity is {sparsity:g}, but must lie between 0 and 1.")
        if not sparsity and not region:
            raise ConfigError(
                "sparsity is 0 and there is no region, so nothing would be masked; for a dense "
                "model use no Sparsifier at all."
            )
        importance = _number("importance", self.importance)
        if importance < 0:
            raise ConfigError(
                f"importance is {importance:g}, but must not be negative; 0 is masks that take no "
                "account of it."
            )
        initial = _number("initial", self.initial)
        if not 0 <= initial <= sparsity:
            raise ConfigError(
                f"initial is {initial:g}, but must lie between 0 and the sparsity {sparsity:g}."
            )
        begin, end = _number("begin", self.begin), _number("end", self.end)
        if not 0 <= begin <= end <= 1:
            raise ConfigError(
                f"begin is {begin:g} and end is {end:g}, but they are fractions of the training "
                "steps and must satisfy 0 <= begin <= end <= 1."
            )
        power = _number("power", self.power)
        if power <= 0:
            raise ConfigError(f"power is {power:g}, but must be positive; 2 is usual.")
        normalised: dict[str, object] = {
            "sparsity": sparsity,
            "skip": _rules("skip", self.skip),
            "only": _rules("only", self.only),
            "per_layer": _mapping("per_layer", self.per_layer, _layer_sparsity),
            "fill": _choice("fill", self.fill, FILLS),
            "per_layer_fill": _mapping(
                "per_layer_fill", self.per_layer_fill, lambda where, v: _choice(where, v, FILLS)
            ),
            "block": _block("block", self.block),
            "per_layer_block": _mapping("per_layer_block", self.per_layer_block, _block),
            "masks": _choice("masks", self.masks, MASKS),
            "importance": importance,
            "alternate": _bool("alternate", self.alternate),
            "region": region,
            "initial": initial,
            "begin": begin,
            "end": end,
            "power": power,
            "frequency": _integer("frequency", self.frequency, 1),
            "selection": _choice("selection", self.selection, SELECTIONS),
            "seed": _integer("seed", self.seed, 0),
        }
        for name, value in normalised.items():
            object.__setattr__(self, name, value)

    @classmethod
    def block_last(cls, sparsity: float, **changes: Any) -> SparsityConfig:
        """Masks on the last layer of each residual block, but for the entries in ``changes``.

        Blocks take turns, and masked positions hold the mean of the two nearest. What only these
        layers read is not computed at masked positions either, so in blocks whose layers but the
        first are pointwise (ConvNeXt, RepViT, FastViT) it saves nearly all of ``sparsity``, and
        what came into a block stays whole.
        """
        return cls(
            sparsity, **{"only": ("block-last",), "alternate": True, "fill": "mean", **changes}
        )

    @classmethod
    def paper(cls, sparsity: float, **changes: Any) -> SparsityConfig:
        """The method of arXiv 2309.06626 as published, but for the entries in ``changes``.

        All convolutions alike, random masks of single positions that are redrawn while the
        sparsity grows, the bias at masked positions.
        """
        published: dict[str, Any] = {
            "fill": "bias",
            "block": 1,
            "masks": "random",
            "importance": 0.0,
            "alternate": False,
            "initial": 0.0,
            "begin": 0.1,
            "end": 0.9,
            "power": 2.0,
            "frequency": 1,
            "selection": "best_loss",
        }
        return cls(sparsity, **{**published, **changes})

    # The order of a mapping's rules decides which one wins, so it is part of the value; dict
    # equality ignores it, the JSON form does not.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparsityConfig):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and scalars, with the ``version`` of the form."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
            elif isinstance(value, Mapping):
                values[name] = dict(value)
        return {"version": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparsityConfig:
        """Inverse of :meth:`to_dict`; absent entries take the defaults of their version.

        Raises:
            ConfigError: for another version, an unknown entry, or a value that does not fit.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"a configuration must be a mapping of names to values, got {values!r:.80}."
            )
        entries = dict(values)
        version = entries.pop("version", None)
        if version == 1:
            entries = {**_VERSION_1, **entries}
        elif version != FORMAT_VERSION:
            raise ConfigError(
                f"the configuration has version {version!r}, but this semisparse reads versions "
                f"1 to {FORMAT_VERSION}; read it with the release that wrote it."
            )
        known = [f.name for f in dataclasses.fields(cls)]
        for name in entries:
            if name not in known:
                raise ConfigError(
                    f"unknown configuration entry {name!r}{_suggestion(str(name), known)}"
                )
        if entries.get("region"):
            entries = {"sparsity": 0.0, **entries}
        if "sparsity" not in entries:
            raise ConfigError("the configuration has no entry 'sparsity'; add one in (0, 1).")
        return cls(**entries)

    def to_json(self) -> str:
        """JSON text of :meth:`to_dict`, on one line."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> SparsityConfig:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigError: if the text is not JSON, or as :meth:`from_dict`.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the configuration is not valid JSON: {error}.") from error
        return cls.from_dict(values)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; known entries: {', '.join(known)}."


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, got {value!r}.")
    return float(value)


def _integer(where: str, value: object, minimum: int, other: str = "") -> int:
    # torch.Generator takes seeds below 2**63.
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not minimum <= int(value) < 2**63
    ):
        raise ConfigError(
            f"{where} must be a whole number from {minimum} up{other}, got {value!r}."
        )
    return int(value)


def _bool(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where} must be true or false, got {value!r}.")
    return value


def _block(where: str, value: object) -> int | str:
    return "auto" if value == "auto" else _integer(where, value, 1, ' or "auto"')


def _choice(where: str, value: object, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{where} is {value!r}, but must be one of {', '.join(choices)}.")
    return str(value)


def _region(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(
            f"region must be a list of rows such as ['.##.', '####'], got {value!r:.80}; "
            "semisparse.region.rows_of makes them of a tensor."
        )
    rows = tuple(value)
    for row in rows:
        if row is None:
            raise ConfigError(
                "region has an empty row; put rows in quotes, as # begins a comment in YAML."
            )
        if not isinstance(row, str) or not row or set(row) - {"#", "."}:
            raise ConfigError(
                f"region has the row {row!r:.80}, but rows consist of '#', inside, and '.', "
                "outside."
            )
        if len(row) != len(rows[0]):
            raise ConfigError(
                f"region has rows of {len(rows[0])} and {len(row)} characters; make them equal."
            )
    if rows and not any("#" in row for row in rows):
        raise ConfigError("region has no '#', so nothing would be computed; mark what matters.")
    return rows


def _layer_sparsity(where: str, value: object) -> float:
    number = _number(where, value)
    if not 0 <= number < 1:
        raise ConfigError(
            f"{where} is {number:g}, but a layer's sparsity must lie in [0, 1); 0 leaves it dense."
        )
    return number


def _rules(where: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{where} must be a list of rules such as ['1x1'], got {value!r}.")
    rules = tuple(value)
    for rule in rules:
        _check_rule(where, rule)
    return rules


def _mapping(where: str, value: object, convert: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must map rules such as '1x1' to values, got {value!r}.")
    for rule in value:
        _check_rule(where, rule)
    return {rule: convert(f"{where}[{rule!r}]", v) for rule, v in value.items()}


def _check_rule(where: str, rule: object) -> None:
    if not isinstance(rule, str) or not rule:
        raise ConfigError(f"{where} holds {rule!r}, but a rule is a non-empty string.")
