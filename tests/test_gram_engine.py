"""Gram matrices in place of activations: the same values, from products taken batch by batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_reference import cka as reference
from similarity_reference import gram, hsic, minibatch_cka

from repsim.errors import UserError
from repsim.similarity import ArrayRepresentation, cka_pairs
from repsim.similarity.estimate import normalised
from repsim.similarity.grams import ArrayGram, PackedGram, centred_gram
from repsim.similarity.halves import half_product
from repsim.similarity.minibatch import BatchSums, batch_hsic, pack, rbf, unpack
from repsim.similarity.products import sample_products


def activations(samples: int = 60, seed: int = 0) -> list[torch.Tensor]:
    """Related layers of several widths; one far from zero, one of tiny, one of uneven scale."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(samples, 12, generator=generator)

    def layer(width: int) -> torch.Tensor:
        mix = torch.randn(12, width, generator=generator)
        return torch.relu(base @ mix + torch.randn(samples, width, generator=generator))

    uneven = layer(40) * torch.logspace(-3, 3, 40)
    return [layer(7), layer(90).view(samples, 10, 3, 3), layer(50) + 1e4, layer(30) * 1e-6, uneven]


def packed(layers: list[torch.Tensor]) -> list[PackedGram]:
    return [
        PackedGram(pack(sample_products(x)), len(x), x[0].numel(), layer=f"l{i}")
        for i, x in enumerate(layers)
    ]


LAYOUTS = {
    "nchw": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "a view": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "double": lambda x: x.double(),
    "one feature": lambda x: x[:, 0, 0, 0],
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_products_are_those_of_centred_rows(layout: str, offset: float) -> None:
    x = LAYOUTS[layout](torch.randn(20, 6, 5, 5, generator=torch.Generator().manual_seed(0)))
    x = x + offset
    wanted = gram(x.double().numpy())
    found = sample_products(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6 * abs(wanted).max())
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-4 * abs(wanted).max())


def test_wide_layers_are_taken_piece_by_piece() -> None:
    x = torch.randn(9, 20000, generator=torch.Generator().manual_seed(0)) + 3
    wanted = gram(x.double().numpy())
    np.testing.assert_allclose(sample_products(x), wanted, atol=1e-6 * wanted.max())


def test_half_precision_is_multiplied_in_full() -> None:
    x = torch.randn(9, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = gram(x.double().numpy())
    np.testing.assert_allclose(sample_products(x), wanted, atol=1e-6 * wanted.max())


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_equal_rows_have_no_products(value: float) -> None:
    rows = torch.full((8, 100), value) + torch.arange(100) / 7
    assert bool((sample_products(rows) == 0).all())


@given(st.integers(1, 9))
@settings(max_examples=9, deadline=None)
def test_packing_keeps_every_entry(samples: int) -> None:
    kernel = torch.randn(samples, samples)
    kernel = kernel + kernel.T
    assert pack(kernel).shape == (samples * (samples + 1) // 2,)
    assert torch.equal(unpack(pack(kernel), samples), kernel)
    gram = PackedGram(pack(kernel), samples, 3)
    assert np.array_equal(gram.gram(slice(0, samples), slice(0, samples)), kernel)
    assert np.array_equal(gram.gram(slice(1, samples), slice(0, 1)), kernel[1:, :1])


@pytest.mark.parametrize("memory", [2**31, 300 * 2**10])
@pytest.mark.parametrize("kernel", ["linear", "rbf:0.5"])
@pytest.mark.parametrize("estimator", ["debiased", "biased", "minibatch"])
def test_gram_matrices_give_the_values_of_activations(
    estimator: str, kernel: str, memory: int
) -> None:
    layers = activations()
    options = {"batch_size": 20} if estimator == "minibatch" else {}
    by_rows = cka_pairs(
        [ArrayRepresentation.from_array(x, layer=f"l{i}") for i, x in enumerate(layers)],
        estimator=estimator, kernel=kernel, memory=memory, **options,
    )  # fmt: skip
    by_grams = cka_pairs(
        packed(layers), estimator=estimator, kernel=kernel, memory=memory, **options
    )
    np.testing.assert_allclose(by_grams.value, by_rows.value, atol=2e-6)
    assert by_grams.replicates is not None
    np.testing.assert_allclose(by_grams.replicates, by_rows.replicates, atol=4e-6)
    if estimator != "minibatch":
        x, y = (layers[i].double().numpy() for i in (1, 2))
        assert by_grams.value[1, 2] == pytest.approx(reference(x, y, estimator, kernel), abs=2e-6)


def test_both_kinds_may_be_compared_with_each_other() -> None:
    x, y = activations()[:2]
    mixed = cka_pairs([ArrayRepresentation.from_array(x, layer="x"), packed([y])[0]])
    assert mixed.value[0, 1] == pytest.approx(
        reference(x.double().numpy(), y.double().numpy()), abs=2e-6
    )


def test_centred_gram_is_the_same_of_both_kinds() -> None:
    for x, kernel in zip(activations(), packed(activations()), strict=True):
        wanted = gram(x.double().numpy())
        scale = abs(wanted).max()
        one = ArrayRepresentation.from_array(x)
        np.testing.assert_allclose(centred_gram(one), wanted, atol=2e-6 * scale)
        np.testing.assert_allclose(centred_gram(kernel), wanted, atol=2e-6 * scale)


def test_centred_gram_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = activations()[1]
    monkeypatch.setattr("repsim.similarity.grams._PIECE", 8 * 90 * 7)
    found = centred_gram(ArrayRepresentation.from_array(x))
    np.testing.assert_allclose(found, gram(x.double().numpy()), atol=1e-4)
    assert torch.equal(found, found.T)


def test_what_is_not_finite_is_named() -> None:
    x = activations()[0]
    x[17, 3] = torch.nan
    with pytest.raises(UserError, match="sample 17"):
        centred_gram(ArrayRepresentation.from_array(x))
    kernel = ArrayGram(np.full((8, 8), np.nan, np.float32), 3)
    with pytest.raises(UserError, match="finite inner products"):
        cka_pairs([kernel])


def test_a_gram_matrix_has_no_activations() -> None:
    with pytest.raises(UserError, match="no activations"):
        packed(activations())[0].rows(0, 3)


def sums(layers: list[torch.Tensor], size: int, groups: int = 3) -> BatchSums:
    batches = len(layers[0]) // size
    found = BatchSums(len(layers), batches, groups)
    for batch in range(batches):
        rows = slice(batch * size, (batch + 1) * size)
        found.add(
            batch, batch_hsic(torch.stack([pack(sample_products(x[rows])) for x in layers]), size)
            .numpy(),
        )  # fmt: skip
    return found


@pytest.mark.parametrize("size", [4, 7, 20, 60])
def test_hsic_of_batches_is_that_of_its_definition(size: int) -> None:
    layers = activations()
    found = normalised(sums(layers, size).value())
    for i, x in enumerate(layers):
        for j, y in enumerate(layers):
            wanted = minibatch_cka(x.double().numpy(), y.double().numpy(), size)
            assert found[i, j] == pytest.approx(wanted, abs=1e-6 if size > 4 else 1e-5)


def test_hsic_keeps_its_units() -> None:
    x, y = activations()[:2]
    found = batch_hsic(torch.stack([pack(sample_products(one)) for one in (x, y)]), len(x))
    wanted = hsic(gram(x.double().numpy()), gram(y.double().numpy()))
    assert found[0, 1] == pytest.approx(wanted, rel=1e-5)


def test_replicates_leave_out_the_batches_of_a_group() -> None:
    layers, size = activations(), 10  # six batches in three groups: 0 3, 1 4, 2 5
    replicates = sums(layers, size).replicates()
    assert replicates is not None
    for group in range(3):
        stay = [b for b in range(6) if b % 3 != group]
        rows = np.concatenate([np.arange(10 * b, 10 * b + 10) for b in stay])
        x, y = (layers[i].double().numpy()[rows] for i in (1, 2))
        found = normalised(replicates[group])[1, 2]
        assert found == pytest.approx(minibatch_cka(x, y, size), abs=2e-6)
    assert sums(layers, 60).replicates() is None


def test_what_varies_in_some_batches_only_counts_there() -> None:
    x = activations()[0].clone()
    x[:20] = 1.0  # the first of three batches
    found = sums([x, activations()[1]], 20)
    kernels = [gram(x[start : start + 20].double().numpy()) for start in (20, 40)]
    wanted = sum(hsic(kernel, kernel) for kernel in kernels) / 3
    assert found.value()[0, 0] == pytest.approx(wanted, rel=1e-5)
    constant = torch.ones(60, 3)
    value = sums([constant, activations()[1]], 20).value()
    assert np.isnan(value[0]).all()
    assert np.isfinite(value[1, 1])


def test_rbf_of_a_batch() -> None:
    layers = activations()[:3]
    size = len(layers[0])
    linear = torch.stack([pack(sample_products(x)) for x in layers])
    found = normalised(batch_hsic(rbf(linear, size, 0.5), size).numpy())
    for i, x in enumerate(layers):
        wanted = reference(x.double().numpy(), layers[1].double().numpy(), "debiased", "rbf:0.5")
        assert found[i, 1] == pytest.approx(wanted, abs=2e-5)
    nothing = rbf(torch.zeros(1, 10), 4, 0.5)
    assert bool((nothing == 0).all())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 64, 65, 300])
@pytest.mark.parametrize("width", [40, 1003])
def test_half_a_product_is_enough(width: int, count: int, threads: int) -> None:
    """One thread multiplies by numpy, several by torch, each columns or squares of its own."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        halves = {block: torch.full((count, count), torch.nan) for block in (1, 7, 100)}
        for block, out in halves.items():
            half_product(rows, out, block)
        whole = sample_products(rows + 3)
    finally:
        torch.set_num_threads(before)
    wanted = rows.double() @ rows.double().T
    number = torch.arange(count)
    for block, out in halves.items():
        upper = number[:, None] // block <= number // block
        torch.testing.assert_close(out.double()[upper], wanted[upper], atol=1e-3, rtol=0)
    centred = rows.double() - rows.double().mean(0)
    torch.testing.assert_close(whole.double(), centred @ centred.T, atol=1e-2, rtol=0)
    assert torch.equal(whole, whole.T)
