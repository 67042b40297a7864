"""What one run of a model shows of its convolutions: the planes they fill and the parts they play.

A linear layer that is called on `[N, H, W, C]` is a 1x1 convolution here and elsewhere.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from semisparse.errors import ModelError

# What can be over a plane: a convolution, or a linear layer of [N, H, W, C].
PlaneLayer = nn.Conv2d | nn.Linear
ROLES = ("stem", "block-last", "shortcut")
_ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
# What may be between a convolution and the addition that it can be merged into, by name.
_LINEAR = _ADDITIONS | {
    *("conv2d", "batch_norm", "linear", "dropout", "identity", "to", "clone", "contiguous"),
    *("sub", "sub_", "__sub__", "__isub__", "__rsub__"),
    *("mul", "mul_", "__mul__", "__imul__", "__rmul__"),
    *("permute", "transpose", "view", "reshape"),
}


@dataclass
class Traced:
    """A convolution in one run of its model.

    Attributes:
        planes: the distinct output planes (height, width); none if the run did not call it, or a
            linear layer not on planes.
        roles: of `ROLES`. A ``"stem"`` has no convolution before it. Where a residual block ends,
            in an addition of two branches of which one has more convolutions than the other, the
            last convolution of the longer branch is ``"block-last"``, and the last one of the
            shorter branch, if the branch has any of its own, a ``"shortcut"``. A single
            convolution without an activation, added to what it reads, is no block: so are
            networks trained that have one convolution there in the end, as RepVGG
            (arXiv 2101.03697).
        residual_block: the how-many-th of the blocks that were added, one after another, on planes
            of one size, if the convolution is in a branch of such a block; 0 outside of blocks. So
            successive blocks have successive numbers, and begin with 1 on a smaller plane.
    """

    planes: set[tuple[int, int]] = field(default_factory=set)
    roles: set[str] = field(default_factory=set)
    residual_block: int = 0


def trace(
    model: nn.Module,
    convolutions: Mapping[str, PlaneLayer],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Traced]:
    """Run a model once, in eval mode and without gradients, and watch its convolutions.

    Parameters, buffers, training flags and the random state stay as they were.

    Args:
        model: that the convolutions are part of.
        convolutions: by name.
        args: what the model is called with.
        kwargs: likewise, by name.

    Raises:
        ModelError: if the model does not run on them.
    """
    traced = {name: Traced() for name in convolutions}
    watch = _Watch(traced)
    hooks = [c.register_forward_hook(watch.hook(name)) for name, c in convolutions.items()]
    training = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.is_cuda}
    try:
        # A compiled model would be compiled anew with the watch in it.
        eager = torch.compiler.set_stance("force_eager")
        with torch.random.fork_rng(devices), torch.no_grad(), eager, watch:
            model.eval()(*args, **kwargs)
    except Exception as error:
        raise ModelError(
            f"the model does not run on the example input ({type(error).__name__}: {error}); pass "
            "an input as in training, on the model's device."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in training.items():
            module.training = flag
    return traced


def plane_of(layer: nn.Module, output: Tensor) -> tuple[int, int] | None:
    """Height and width of what a convolution or linear layer put out; None without a plane."""
    if not isinstance(layer, nn.Linear):
        return output.shape[-2], output.shape[-1]
    return (output.shape[1], output.shape[2]) if output.dim() == 4 else None


@dataclass(frozen=True)
class _History:
    """How a tensor came about: the convolutions before it, the length of the longest chain of
    them, the last one and its plane, if the tensor lies on that and no addition came since, how
    many residual blocks ended on planes of this size, and how many functions in a row were none of
    `_LINEAR`.
    """

    convolutions: frozenset[str] = frozenset()
    depth: int = 0
    last: str | None = None
    plane: tuple[int, ...] = ()
    blocks: int = 0
    bends: int = 0


class _Watch(TorchFunctionMode):
    """Carries histories from the inputs of every torch function to its outputs.

    Done by running, not by torch.fx, because a run also shows the planes and goes through any
    Python. What TorchScript does inside is not seen, so it has no roles.
    """

    def __init__(self, traced: Mapping[str, Traced]) -> None:
        super().__init__()
        self._traced = traced
        # By id, with a reference that tells whether the id still is this tensor's.
        self._histories: dict[int, tuple[weakref.ref[Tensor], _History]] = {}

    def hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """A forward hook of the convolution of that name."""

        def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
            plane = plane_of(module, output)
            if plane is None:
                return
            given = list(_tensors(inputs))
            before = _join([(self._get(tensor), tensor.shape) for tensor in given], output)
            traced = self._traced[name]
            traced.planes.add(plane)
            if not before.convolutions:
                traced.roles.add("stem")
            stays = isinstance(module, nn.Linear) or any(x.shape[-2:] == plane for x in given)
            self._set(
                output,
                _History(
                    before.convolutions | {name},
                    before.depth + 1,
                    name,
                    plane,
                    before.blocks if stays else 0,
                    before.bends,
                ),
            )

        return after

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors(itertools.chain(args, kwargs.values())))
        # Of before the call, because it may be in place.
        before = [(self._get(tensor), tensor) for tensor in tensors]
        if not any(history.convolutions for history, _ in before):
            return function(*args, **kwargs)
        passing = [(history, tensor.shape) for history, tensor in before]
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        for output in _tensors([result]):
            shapes = [shape for _, shape in passing]
            if name in _ADDITIONS and output.dim() == 4 and shapes == 2 * [output.shape]:
                self._set(output, self._added(*(history for history, _ in passing)))
            else:
                joined = _join(passing, output)
                bends = joined.bends + (name not in _LINEAR)
                self._set(output, replace(joined, bends=bends))
        return result

    def _added(self, one: _History, other: _History) -> _History:
        short, long = sorted((one, other), key=lambda history: history.depth)
        own = short.convolutions - long.convolutions
        single = long.depth == short.depth + 1 and not own and long.bends == short.bends
        if short.depth < long.depth and not single:
            if long.last is not None and long.last not in short.convolutions:
                self._traced[long.last].roles.add("block-last")
            if short.last is not None and short.last not in long.convolutions:
                self._traced[short.last].roles.add("shortcut")
            blocks = short.blocks + 1
            for name in one.convolutions ^ other.convolutions:
                # Of a block within a block it is the inner one.
                self._traced[name].residual_block = self._traced[name].residual_block or blocks
        else:
            blocks = max(short.blocks, long.blocks)
        bends = max(one.bends, other.bends)
        return _History(one.convolutions | other.convolutions, long.depth, None, (), blocks, bends)

    def _get(self, tensor: Tensor) -> _History:
        reference, history = self._histories.get(id(tensor), (None, _History()))
        return history if reference is not None and reference() is tensor else _History()

    def _set(self, tensor: Tensor, history: _History) -> None:
        self._histories[id(tensor)] = weakref.ref(tensor), history


def _join(passing: list[tuple[_History, torch.Size]], output: Tensor) -> _History:
    """Of the output of a function of tensors with these histories and shapes."""
    # Those of the output's shape come first: a gate takes part, but is not what passes through.
    through = [pair for pair in passing if pair[1] == output.shape] or passing
    deepest, _ = max(through, key=lambda pair: pair[0].depth, default=(_History(), None))
    # In NCHW or in NHWC.
    stays = deepest.plane in (output.shape[-2:], output.shape[-3:-1])
    return _History(
        frozenset().union(*(history.convolutions for history, _ in passing)),
        deepest.depth,
        deepest.last if stays else None,
        deepest.plane if stays else (),
        deepest.blocks,
        max((history.bends for history, _ in passing), default=0),
    )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
