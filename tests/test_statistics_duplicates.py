"""Layers that hold the same numbers are told by content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repsim.compare import compare, compare_all
from repsim.errors import UserError
from repsim.similarity import ArrayRepresentation, Representation
from repsim.similarity.duplicates import alike, duplicates, without_duplicates
from repsim.similarity.grams import ArrayGram

N = 300
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, N, 6)).astype(np.float32)
ALMOST = A.copy()
ALMOST[-1, -1] += 1e-3  # differs in one number of the last row


def side(
    condition: str = "clean", model: str = "net", **layers: np.ndarray
) -> list[Representation]:
    return [ArrayRepresentation(v, name, condition, model) for name, v in layers.items()]


def test_equal_in_every_number_and_only_then() -> None:
    zero, minus = np.maximum(A, 0), np.where(A > 0, A, -0.0).astype(np.float32)
    reps = side(a=A, b=B, a2=A.copy(), almost=ALMOST, a3=A.copy(), zero=zero, minus=minus)
    assert duplicates(reps) == [None, None, 0, None, 0, None, 5]


def test_only_of_one_condition_and_one_model() -> None:
    reps = [*side(a=A), *side("pgd", a=A), *side(model="other", a=A, b=A)]
    assert duplicates(reps) == [None, None, None, 2]


def test_a_transposed_or_reshaped_layer_is_not_taken_for_one() -> None:
    assert duplicates(side(a=A, b=A[:, ::-1].copy(), c=A.reshape(N // 2, 12))) == [None] * 3


def test_gram_matrices_are_compared_where_there_are_no_activations() -> None:
    K = A @ A.T
    other = K.copy()
    other[-1, -1] += 1
    grams = [ArrayGram(v, 6, f"l{i}") for i, v in enumerate((K, K.copy(), other))]
    assert duplicates(grams) == [None, 0, None]


class Batched(ArrayGram):
    """Knows inner products within batches of 7 only, as a minibatch pass does."""

    def gram(self, rows: slice, columns: slice) -> np.ndarray:
        if rows.start // 7 != (columns.stop - 1) // 7:
            raise UserError("between batches there are none")
        return super().gram(rows, columns)


def test_of_a_minibatch_pass_the_diagonals_are_compared() -> None:
    K = (A @ A.T)[:35, :35]
    other = K.copy()
    other[-1, -1] += 1
    grams = [Batched(v, 6, f"l{i}") for i, v in enumerate((K, K.copy(), other))]
    monkey = pytest.MonkeyPatch()
    monkey.setattr("repsim.similarity.duplicates._FEW", 7)
    with monkey.context():
        assert duplicates(grams) == [None, 0, None]
    monkey.undo()


def test_the_filter_by_similarity_keeps_all_equal_ones() -> None:
    reps = side(a=A, b=B, a2=A.copy(), flat=np.ones((N, 2)), flat2=np.ones((N, 2)))
    everything = compare_all(reps)
    likely = alike(everything.pairs.value)
    assert likely[0, 2]
    assert likely[3, 4]
    assert not likely[0, 1]
    assert everything.duplicate_of == [None, None, 0, None, 3]
    assert duplicates(reps) == everything.duplicate_of


def test_a_result_names_them() -> None:
    rows = side(a=A, b=B, a2=A.copy())
    result = compare(rows, side("pgd", a=B, b=A))
    assert result["x_duplicate_of"].values.tolist() == ["", "", "a"]
    assert result["y_duplicate_of"].values.tolist() == ["", ""]


def test_sides_of_the_same_layers_lose_the_same_ones() -> None:
    """A layer that is a duplicate under one condition only stays under both."""
    clean = side(a=A, block=A.copy(), b=B, relu=B.copy())
    attacked = side("pgd", a=B, block=B.copy(), b=A, relu=np.abs(A))
    other = side(model="other", stem=A, pool=A.copy())
    kept, dropped = without_duplicates([*clean, *attacked, *other])
    assert [(one.condition, one.model, one.layer) for one in kept] == [
        ("clean", "net", "a"), ("clean", "net", "b"), ("clean", "net", "relu"),
        ("pgd", "net", "a"), ("pgd", "net", "b"), ("pgd", "net", "relu"),
        ("clean", "other", "stem"),
    ]  # fmt: skip
    assert dropped == {"block": "a", "pool": "stem"}
    again, nothing = without_duplicates(kept)
    assert again == kept
    assert nothing == {}


def test_two_of_one_name_with_equal_inner_products_are_one() -> None:
    gram = ArrayGram(A @ A.T, 6, "a")
    assert len(compare_all([gram, replace(gram)]).keys) == 1
    with pytest.raises(UserError, match="different names"):
        compare_all([gram, replace(gram, values=B @ B.T)])
