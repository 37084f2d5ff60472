"""Reductions keep what they claim to keep, in memory of their own, the same in every store."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import repsim.reduce
from repsim.errors import UserError
from repsim.reduce import Reduce, parse_reduce, projection_rows

GOLDEN = [
    [-1, 1, -1, 1],
    [-1, 1, 1, -1],
    [1, 1, 1, -1],
    [-1, 1, 1, -1],
    [-1, -1, -1, -1],
    [-1, 1, 1, 1],
]


def whole_matrix(shape, size):
    return projection_rows(shape, size, 0, math.prod(shape))


@pytest.mark.parametrize("text", ["flatten", "avgpool", "project:1", "project:256"])
def test_text_is_read_back(text):
    assert parse_reduce(text).text == text


@pytest.mark.parametrize(
    "text",
    ["", "mean", "project", "project:", "project:0", "project:-3", "project:1.5", "avgpool:2"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match=r"flatten, avgpool or project:K"):
        parse_reduce(text)


@given(
    shape=st.lists(st.integers(1, 5), max_size=4).map(tuple),
    text=st.sampled_from(["flatten", "avgpool", "project:3", "project:70"]),
)
@settings(max_examples=60, deadline=None)
def test_features_are_foretold(shape, text):
    how = parse_reduce(text)
    assert how(torch.randn(2, *shape)).shape == (2, how.features(shape))


def test_flatten_keeps_the_order_whatever_the_layout():
    x = torch.randn(3, 4, 5, 6)
    expected = x.flatten(1)
    assert torch.equal(parse_reduce("flatten")(x), expected)
    assert torch.equal(parse_reduce("flatten")(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(parse_reduce("flatten")(x, torch.float16), expected.half())


@pytest.mark.parametrize("text", ["flatten", "avgpool", "project:4"])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 2, 2)])
def test_the_result_survives_a_change_in_place(text, shape):
    x = torch.randn(3, *shape)
    kept = parse_reduce(text)(x)
    before = kept.clone()
    x.relu_().add_(7)
    assert torch.equal(kept, before)


def test_avgpool_means_positions_of_images_and_of_tokens():
    images, tokens, flat = torch.randn(3, 4, 5, 6), torch.randn(3, 7, 8), torch.randn(3, 9)
    how = parse_reduce("avgpool")
    torch.testing.assert_close(how(images), images.mean((2, 3)))
    torch.testing.assert_close(how(tokens), tokens.mean(1))
    assert torch.equal(how(flat), flat)


def test_projection_is_the_product_with_its_matrix():
    x = torch.randn(5, 3, 10, 10)
    expected = x.flatten(1).double() @ whole_matrix((3, 10, 10), 70).double()
    torch.testing.assert_close(
        parse_reduce("project:70")(x).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_projection_does_not_depend_on_blocks_or_on_what_is_kept(monkeypatch):
    x = torch.randn(4, 1000)
    expected = parse_reduce("project:20")(x)
    monkeypatch.setattr(repsim.reduce, "_BLOCK", 20 * 64)
    how = parse_reduce("project:20")
    torch.testing.assert_close(how(x), expected)
    assert torch.equal(how(x), how(x))
    assert len(how._kept) == 1
    monkeypatch.setattr(repsim.reduce, "_KEPT", 1000)
    bounded = parse_reduce("project:20")
    assert torch.equal(bounded(x), how(x))
    assert not bounded._kept


def test_memory_of_kept_matrices_is_bounded(monkeypatch):
    monkeypatch.setattr(repsim.reduce, "_KEPT", 3000 * 4)
    how = parse_reduce("project:4")
    for features in (1000, 1500, 1000, 1400, 100):
        how(torch.randn(2, features))
    kept = sum(block.numel() for blocks in how._kept.values() for block in blocks)
    assert 0 < kept <= 3000 * 4


def test_small_layers_stay_as_they_are():
    x = torch.randn(3, 2, 4)
    assert torch.equal(parse_reduce("project:8")(x), x.flatten(1))
    assert not torch.equal(parse_reduce("project:7")(x), x.flatten(1)[:, :7])


def test_the_matrix_is_fixed_for_all_time():
    """Stores of different releases are compared: these signs must never change."""
    rows = projection_rows((16, 8, 8), 4, 100, 106) * 2
    assert rows.tolist() == GOLDEN


def test_the_matrix_depends_on_shape_and_size():
    one = whole_matrix((64,), 32)
    assert not torch.equal(one, whole_matrix((8, 8), 32))
    assert not torch.equal(one[:, :16].sign(), whole_matrix((64,), 16).sign())
    assert torch.equal(one[10:20], projection_rows((64,), 32, 10, 20))


def test_signs_are_balanced_and_uncorrelated():
    matrix = whole_matrix((4096,), 130)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, 130**-0.5))
    signs = matrix.sign().double()
    correlation = signs.T @ signs / len(signs)
    off = correlation - torch.eye(130)
    # Each entry has standard deviation 1/64; of 8385 pairs the largest is below 6 of those.
    assert off.abs().max() < 6 / 64
    assert signs.mean(0).abs().max() < 5 / 64


def test_inner_products_survive_in_expectation():
    """E⟨Sx, Sy⟩ = ⟨x, y⟩ with standard deviation at most √(2/K)·|x||y| (Achlioptas 2003)."""
    draw = torch.Generator().manual_seed(0)  # the rows share a vector, so their errors go together
    rows = torch.randn(40, 3000, generator=draw) + torch.randn(1, 3000, generator=draw)
    x = torch.nn.functional.normalize(rows, dim=1)
    projected = parse_reduce("project:512")(x)
    error = projected @ projected.T - x @ x.T
    assert error.abs().max() < 5 * math.sqrt(2 / 512)
    assert error.square().mean().sqrt() < math.sqrt(2 / 512)


def test_autocast_does_not_touch_the_product():
    x = torch.randn(4, 500)
    expected = parse_reduce("project:16")(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(parse_reduce("project:16")(x), expected)


def test_equal_settings_are_equal():
    assert parse_reduce("project:16") == Reduce("project", 16) != Reduce("project", 17)
