from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import adaptive_avg_pool2d

from semisparse.errors import MaskError
from semisparse.masks import (
    can_mask,
    mask_from_score,
    mean_sources,
    propagate,
    source_map,
    sources_of,
    sparsity_of,
    take_turn,
)

sides = st.integers(1, 12)
masks = hnp.arrays(bool, st.tuples(sides, sides))


def scores(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((height, width)))


def pooled_by_definition(score: np.ndarray, height: int, width: int) -> np.ndarray:
    """Plain average pooling of the score blown up to a size that both sizes divide."""
    blown_up = np.kron(score, np.ones((height, width)))
    blocks = blown_up.reshape(height, score.shape[0], width, score.shape[1])
    return blocks.mean(axis=(1, 3))


@given(sides, sides, sides, sides, st.integers(0, 99))
def test_propagate_is_the_area_weighted_mean(h: int, w: int, oh: int, ow: int, seed: int) -> None:
    score = scores(h, w, seed)
    got = propagate(score, oh, ow)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(
        got.numpy(), pooled_by_definition(score.numpy(), oh, ow), rtol=1e-12, atol=1e-15
    )


def test_propagate_is_average_pooling_where_sizes_divide() -> None:
    score = scores(224, 96, 0)
    expected = adaptive_avg_pool2d(score[None], (56, 12))[0]
    torch.testing.assert_close(propagate(score, 56, 12), expected, rtol=1e-12, atol=0)


@given(sides, sides, st.integers(0, 99))
def test_propagate_to_its_own_size_is_the_score(h: int, w: int, seed: int) -> None:
    assert torch.equal(propagate(scores(h, w, seed), h, w), scores(h, w, seed))


@given(
    hnp.arrays(np.float64, st.tuples(sides, sides), elements=st.sampled_from([0.0, 0.25, 0.5])),
    st.floats(0, 0.999),
)
def test_mask_takes_the_lowest_scores_and_then_the_lowest_positions(
    score: np.ndarray, sparsity: float
) -> None:
    mask = mask_from_score(torch.from_numpy(score), sparsity).numpy().ravel()
    flat = score.ravel()
    count = min(round(sparsity * flat.size), flat.size - 1)
    expected = sorted(range(flat.size), key=lambda p: (flat[p], p))[:count]
    assert sorted(np.flatnonzero(~mask)) == sorted(expected)


def test_mask_always_computes_something() -> None:
    assert mask_from_score(scores(7, 7, 0), 0.999).sum() == 1
    assert mask_from_score(scores(1, 1, 0), 0.9).all()


def block_sums(values: np.ndarray, block: int) -> np.ndarray:
    """Sum of each block, those at the edges padded with zeros."""
    height, width = (-(-side // block) for side in values.shape)
    padded = np.zeros((height * block, width * block))
    padded[: values.shape[0], : values.shape[1]] = values
    return padded.reshape(height, block, width, block).sum(axis=(1, 3))


def blocks_by_definition(score: np.ndarray, sparsity: float, block: int) -> np.ndarray:
    """Of all masks that take blocks in order of their mean, the one nearest to the sparsity."""
    areas = block_sums(np.ones(score.shape), block)
    means = (block_sums(score, block) / areas).ravel()
    order = sorted(range(means.size), key=lambda b: (means[b], b))
    candidates = []
    for taken in range(means.size):
        computed = np.ones(means.size, dtype=bool)
        computed[order[:taken]] = False
        blown_up = np.kron(computed.reshape(areas.shape), np.ones((block, block), dtype=bool))
        candidates.append(blown_up[: score.shape[0], : score.shape[1]])
    wanted = round(sparsity * score.size)
    return min(candidates, key=lambda mask: (abs((~mask).sum() - wanted), (~mask).sum()))


# Multiples of 1/4 have exact sums, and many equal means.
coarse_scores = hnp.arrays(
    np.float64, st.tuples(sides, sides), elements=st.sampled_from([0.0, 0.25, 0.5])
)


@given(coarse_scores, st.floats(0, 0.999), st.integers(1, 14))
def test_blocks_of_lowest_mean_are_masked(score: np.ndarray, sparsity: float, block: int) -> None:
    mask = mask_from_score(torch.from_numpy(score), sparsity, block).numpy()
    np.testing.assert_array_equal(mask, blocks_by_definition(score, sparsity, block))


@given(sides, sides, st.integers(0, 99), st.integers(1, 5), st.floats(0, 0.999), st.floats(0, 1))
def test_blocks_only_add_up_as_sparsity_grows(
    h: int, w: int, seed: int, block: int, sparsity: float, part: float
) -> None:
    more = mask_from_score(scores(h, w, seed), sparsity, block)
    fewer = mask_from_score(scores(h, w, seed), sparsity * part, block)
    assert not (more & ~fewer).any()


@given(sides, sides, st.integers(1, 14), st.floats(0, 0.999))
def test_can_mask_tells_whether_any_score_masks(
    h: int, w: int, block: int, sparsity: float
) -> None:
    # No score masks sooner than the one whose lowest block is the smallest, at the last corner.
    score = torch.arange(h * w, 0, -1, dtype=torch.float64).view(h, w)
    assert can_mask(sparsity, h, w, block) == (not mask_from_score(score, sparsity, block).all())


def test_blocks_of_a_usual_plane_meet_the_sparsity() -> None:
    mask = mask_from_score(scores(56, 56, 0), 0.3, 4)
    tiles = mask.view(14, 4, 14, 4).transpose(1, 2).flatten(2)
    assert ((tiles.all(2)) | (~tiles).all(2)).all()
    assert int((~tiles[:, :, 0]).sum()) == 59  # 0.3 * 3136 = 940.8 positions; 58.8 tiles


def test_a_plane_that_one_block_covers_stays_dense() -> None:
    for block in (7, 8, 10**9):
        assert mask_from_score(scores(7, 7, 0), 0.99, block).all()
        assert not can_mask(0.99, 7, 7, block)
    assert not mask_from_score(scores(7, 7, 0), 0.99, 6).all()


def nearest_by_definition(mask: np.ndarray) -> np.ndarray:
    kept = np.argwhere(mask)
    result = np.empty(mask.shape, dtype=np.int32)
    for y, x in np.ndindex(*mask.shape):
        distance = ((kept - (y, x)) ** 2).sum(axis=1)
        ky, kx = kept[distance.argmin()]  # the first of equals has the lowest index
        result[y, x] = ky * mask.shape[1] + kx
    return result


@given(sides, sides, st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
def test_a_turn_is_the_same_order_begun_elsewhere(
    h: int, w: int, turn: int, seed: int, block: int
) -> None:
    score = scores(h, w, seed)
    taken = take_turn(score, turn, block)
    assert (taken > 0).all()
    assert (taken < 1).all()
    kept = mask_from_score(score, 0.5, block)
    assert torch.equal(mask_from_score(take_turn(score, 0, block), 0.5, block), kept)
    corners = np.sort(taken[::block, ::block].flatten().numpy())
    np.testing.assert_allclose(corners, (np.arange(len(corners)) + 0.5) / len(corners))
    order = score if block == 1 else take_turn(score, 0, block)
    begun = taken.flatten()[order.flatten().argsort(stable=True)].numpy()
    assert (np.diff(begun) < 0).sum() <= 1


@pytest.mark.parametrize("block", [1, 2, 4])
def test_four_turns_compute_every_position_once_at_three_quarters(block: int) -> None:
    score = scores(16, 24, 0)
    kept = [mask_from_score(take_turn(score, turn, block), 0.75, block) for turn in range(4)]
    assert (sum(mask.int() for mask in kept) == 1).all()


@given(st.integers(5, 30), st.integers(5, 30), st.integers(1, 4), st.integers(0, 99))
def test_turns_share_no_more_than_a_block(h: int, w: int, block: int, seed: int) -> None:
    score = scores(h, w, seed)
    masks = [mask_from_score(take_turn(score, turn, block), 0.5, block) for turn in range(4)]
    for one, other in (masks[:2], masks[2:]):
        assert int((~one & ~other).sum()) <= block**2
    kept = [mask_from_score(take_turn(score, turn, block), 0.75, block) for turn in range(4)]
    assert int((sum(mask.int() for mask in kept) == 0).sum()) <= 2 * block**2


@given(masks.filter(np.any))
def test_nearest_source_is_the_nearest_and_then_the_lowest(mask: np.ndarray) -> None:
    source = source_map(torch.from_numpy(mask), "nearest")
    assert source.dtype == torch.int32
    np.testing.assert_array_equal(source.numpy(), nearest_by_definition(mask))


@pytest.mark.parametrize("sparsity", [0.3, 0.95])
def test_nearest_source_on_large_planes(sparsity: float) -> None:
    mask = mask_from_score(scores(33, 70, 1), sparsity)
    mask[:, 20:50] = False
    np.testing.assert_array_equal(
        source_map(mask, "nearest").numpy(), nearest_by_definition(mask.numpy())
    )


def test_nearest_source_of_one_computed_position_in_a_large_plane() -> None:
    mask = torch.zeros(640, 640, dtype=torch.bool)
    mask[639, 3] = True
    assert (source_map(mask, "nearest") == 639 * 640 + 3).all()


def mean_by_definition(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.argwhere(mask)
    sources = np.empty((2, *mask.shape), dtype=np.int32)
    weight = np.zeros(mask.shape)
    for y, x in np.ndindex(*mask.shape):
        distance = np.sqrt(((kept - (y, x)) ** 2).sum(axis=1))
        a, *rest = distance.argsort(kind="stable")  # of equals the lowest index first
        b = rest[0] if rest and not mask[y, x] else a
        sources[:, y, x] = kept[[a, b]] @ (mask.shape[1], 1)
        if b != a:
            weight[y, x] = distance[a] / (distance[a] + distance[b])
    return sources, weight


def assert_means_are_those_of_the_definition(mask: np.ndarray) -> None:
    sources, weight = mean_sources(torch.from_numpy(mask))
    expected, expected_weight = mean_by_definition(mask)
    assert sources.dtype == torch.int32
    assert weight.dtype == torch.float32
    np.testing.assert_array_equal(sources.numpy(), expected)
    np.testing.assert_allclose(weight.numpy(), expected_weight, rtol=1e-6)
    assert torch.equal(sources[0], source_map(torch.from_numpy(mask), "nearest"))


@given(masks.filter(np.any))
def test_mean_sources_are_the_two_nearest_weighted_by_inverse_distance(mask: np.ndarray) -> None:
    assert_means_are_those_of_the_definition(mask)


@pytest.mark.parametrize("sparsity", [0.3, 0.95])
def test_mean_sources_on_large_planes(sparsity: float) -> None:
    mask = mask_from_score(scores(33, 70, 1), sparsity)
    mask[:, 20:50] = False
    assert_means_are_those_of_the_definition(mask.numpy())


@pytest.mark.parametrize("places", [[(111, 3)], [(0, 111), (111, 0)]])
def test_mean_sources_of_few_computed_positions_in_a_large_plane(
    places: list[tuple[int, int]],
) -> None:
    mask = torch.zeros(112, 112, dtype=torch.bool)
    for place in places:
        mask[place] = True
    assert_means_are_those_of_the_definition(mask.numpy())


def test_sources_are_those_of_the_fill() -> None:
    mask = mask_from_score(scores(9, 7, 0), 0.5)
    for fill in ("bias", "nearest"):
        (source,) = sources_of(mask, fill)
        assert torch.equal(source, source_map(mask, fill))
    for found, expected in zip(sources_of(mask, "mean"), mean_sources(mask), strict=True):
        assert torch.equal(found, expected)


@given(masks)
def test_bias_source_is_minus_one_where_masked(mask: np.ndarray) -> None:
    source = source_map(torch.from_numpy(mask), "bias").numpy()
    index = np.arange(mask.size).reshape(mask.shape)
    np.testing.assert_array_equal(source, np.where(mask, index, -1))


@given(masks)
def test_sparsity_is_the_masked_fraction(mask: np.ndarray) -> None:
    assert sparsity_of(torch.from_numpy(mask)) == pytest.approx((~mask).mean())


ones = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: propagate(torch.rand(4, 4), 2, 2), "float64"),
        (lambda: propagate(torch.rand(4, dtype=torch.float64), 2, 2), r"\[4\]"),
        (lambda: propagate(torch.rand(4, 4, dtype=torch.float64), 0, 2), "0x2"),
        (lambda: mask_from_score(torch.rand(4), 0.5), r"\[4\]"),
        (lambda: mask_from_score(torch.rand(4, 4), 1.0), "sparsity is 1.0"),
        (lambda: mask_from_score(torch.rand(4, 4), 0.5, 0), "block is 0"),
        (lambda: mask_from_score(torch.full((2, 2), float("nan")), 0.5), "NaN"),
        (lambda: source_map(ones.int(), "bias"), "int32"),
        (lambda: source_map(ones[0], "bias"), r"\[3\]"),
        (lambda: source_map(ones, "zero"), "'zero'"),
        (lambda: source_map(ones, "mean"), "mean_sources"),
        (lambda: source_map(~ones, "nearest"), "no computed position"),
        (lambda: mean_sources(ones.int()), "int32"),
        (lambda: mean_sources(~ones), "2x3 has no computed position"),
        (lambda: sources_of(ones, "zero"), "'zero'"),
        (lambda: sparsity_of(ones[:0]), r"\[0, 3\]"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        call()  # type: ignore[operator]
