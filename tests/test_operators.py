"""Each operator is the matrix that it shows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpmc.engine.sparsity import Windowed, ready
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import images, matrix

SIDES = st.integers(1, 9)


def every_operator(h, w, seed):
    """One of each structure on h × w images, per pixel and per dimension."""
    boxes = [
        Box((h, w), p, border) for p in range(1, min(h, w) + 1) for border in ("valid", "clip")
    ]
    per_dimension = [Ones((2, h, w)), Identity((2, h, w)), Dense(matrix(3, (2, h, w), seed))]
    return [Ones((h, w)), Identity((h, w)), Dense(matrix(4, (h, w), seed)), *boxes, *per_dimension]


@given(SIDES, SIDES, st.integers(0, 100))
def test_apply_and_transpose_are_products_with_the_dense_matrix(h, w, seed):
    for op in every_operator(h, w, seed):
        dense = op.dense().flatten(1)
        a = images(3, op.shape, seed, torch.float64).movedim(0, -1)
        b = images(op.k, (3,), seed + 1, torch.float64)
        applied = dense @ a.reshape(-1, 3)
        torch.testing.assert_close(op.apply(a), applied)
        torch.testing.assert_close(op.transpose(b), (dense.T @ b).view(*op.shape, 3))


@given(SIDES, SIDES, st.integers(0, 100))
def test_the_transpose_is_the_adjoint(h, w, seed):
    for op in every_operator(h, w, seed):
        a = images(1, op.shape, seed, torch.float64)[0]
        b = images(1, (op.k,), seed + 1, torch.float64)[0]
        torch.testing.assert_close((op.apply(a) * b).sum(), (a * op.transpose(b)).sum())


@pytest.mark.parametrize("border", ["valid", "clip"])
@pytest.mark.parametrize("p", range(1, 9))
def test_a_box_covers_what_equation_36_says(p, border):
    side = 8
    before, after = p // 2, (p + 1) // 2 - 1
    rows = []
    for i in range(side):
        for j in range(side):
            fits = all(before <= centre <= side - 1 - after for centre in (i, j))
            if border == "clip" or fits:
                row = torch.zeros(side, side, dtype=torch.float64)
                top, left = max(0, i - before), max(0, j - before)
                row[top : i + after + 1, left : j + after + 1] = 1
                rows.append(row)
    torch.testing.assert_close(Box((side, side), p, border).dense(), torch.stack(rows))


def test_a_partition_gives_every_pixel_to_one_estimator():
    for op in every_operator(4, 3, 0):
        if op.partition:
            dense = op.dense().flatten(1)
            assert set(dense.unique().tolist()) <= {0.0, 1.0}
            assert (dense.sum(0) == 1).all()


@pytest.mark.parametrize("op", every_operator(4, 4, 0), ids=repr)
def test_arrays_of_another_shape_are_refused(op):
    with pytest.raises(ValueError, match="a: got shape"):
        op.apply(torch.ones(6, 6))
    with pytest.raises(ValueError, match="b: got shape"):
        op.transpose(torch.ones(op.k + 1))


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Box((4, 6), 5), ValueError, "p: got 5, wanted between 1 and 4"),
        (lambda: Box((4, 4), 0), ValueError, "p: got 0"),
        (lambda: Box((4, 4), 1.5), TypeError, "p: got 1.5, wanted a whole number"),
        (lambda: Box((4, 4), 2, "wrap"), ValueError, "border: got 'wrap'"),
        (lambda: Box((3, 4, 4), 2), ValueError, "shape: got (3, 4, 4), wanted (h, w)"),
        (lambda: Ones((0, 4)), ValueError, "shape: got 0"),
        (lambda: Identity(4), ValueError, "shape: got 4"),
        (lambda: Dense(torch.ones(2, 3)), ValueError, "matrix: got shape (2, 3)"),
        (lambda: Dense(-torch.ones(2, 3, 3)), ValueError, "matrix: got negative"),
        (lambda: Dense(torch.full((2, 3, 3), torch.nan)), ValueError, "non-finite"),
        (
            lambda: Dense(torch.ones(2, 3, 3, dtype=torch.long)),
            TypeError,
            "matrix: got torch.int64",
        ),
        (lambda: Dense([[1.0]]), TypeError, "matrix: got list"),
        (lambda: Dense(torch.full((2, 3, 3), 2e30)), ValueError, "matrix: got 2e+30, wanted"),
        (lambda: Dense(torch.ones(2, 3, 3).to_sparse()), TypeError, "matrix: got no dense"),
        (lambda: Dense(torch.ones(2, 3, 3, device="meta")), TypeError, "matrix: got no dense"),
    ],
)
def test_bad_input_is_named(make, error, says):
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)


class TestWindows:
    """A dense operator that vanishes outside windows multiplies inside them alone."""

    @given(
        h=st.integers(3, 12), w=st.integers(3, 12), p=st.integers(1, 3),
        channels=st.sampled_from([0, 1, 3]), seed=st.integers(0, 100),
    )  # fmt: skip
    def test_it_is_the_same_matrix(self, h, w, p, channels, seed):
        local = Box((h, w), p, "clip").dense()
        if channels:
            local = torch.einsum("khw,cd->ckdhw", local, torch.eye(channels)).flatten(0, 1)
        generator = torch.Generator().manual_seed(seed)
        op = Dense(local * torch.rand(local.shape, generator=generator, dtype=local.dtype))
        acting = ready(op, torch.empty(0, dtype=torch.float64))
        a = torch.rand(*op.shape, 2, 3, generator=generator, dtype=torch.float64)
        b = torch.rand(op.k, 2, 3, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(acting.apply(a), op.apply(a))
        torch.testing.assert_close(acting.transpose(b), op.transpose(b))

    def test_windows_are_small_where_masks_are(self):
        like = torch.empty(0)
        local = ready(Dense(Box((16, 16), 3, "clip").dense()), like)
        assert isinstance(local, Windowed)
        assert local.size <= 64 * (4 + 2) * 16 * 4  # four groups of four rows, and their margins
        assert isinstance(ready(Dense(Box((16, 16), 15, "clip").dense()), like), Dense)
        assert local.to(torch.empty(0, dtype=torch.float64)).size == local.size

    def test_rows_of_zeros_have_no_window(self):
        matrix = torch.zeros(130, 8, 16)
        matrix[129, 7, 15] = 2.0
        acting = ready(Dense(matrix), matrix)
        assert acting.size == 2
        assert acting.apply(torch.ones(8, 16, 1)).flatten().tolist() == [0.0] * 129 + [2.0]
