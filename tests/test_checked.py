"""The type checker that tests run under finds each wrong call, also after right ones."""

import os
from collections import deque
from collections.abc import Collection
from typing import Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.checker import checked

checks = jaxtyped(typechecker=checked)
TWO, THREE = torch.zeros(2), torch.zeros(3)


@checks
def paired(
    x: Float[Tensor, "b c"], y: Float[Tensor, " b"], name: str = "", more: tuple = (), add: int = 0
) -> Float[Tensor, " c"]:
    return x.new_zeros(x.shape[1] + add)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((torch.zeros(2, 3), THREE), {}),
        ((torch.zeros(3, 3), TWO), {}),
        ((TWO, TWO), {}),
        ((torch.zeros(2, 3, dtype=torch.int64), TWO), {}),
        ((torch.zeros(2, 3), [0.0, 0.0]), {}),
        ((torch.zeros(2, 3), TWO), {"name": 1}),
        ((torch.zeros(2, 3), TWO), {"more": [1]}),
        ((torch.zeros(2, 3), TWO), {"add": 1}),
    ],
)
def test_a_wrong_call_is_found_after_a_right_one(arguments, options):
    for _ in range(2):
        assert paired(torch.zeros(2, 3), TWO).shape == (3,)
        with pytest.raises(TypeCheckError):
            paired(*arguments, **options)


def test_functions_of_one_name_are_checked_by_their_own_annotations():
    def made(kind):
        @checks
        def inner(x: kind) -> kind:
            return x

        return inner

    for _ in range(2):
        assert made(int)(1) == 1
        assert made(str)("a") == "a"
        with pytest.raises(TypeCheckError):
            made(int)("a")
        with pytest.raises(TypeCheckError):
            made(Float[Tensor, " b"])(1)


def test_functions_of_one_name_and_no_annotations_have_their_own_arguments():
    def made(several):
        if several:

            @checks
            def inner(x, y):
                return x + y

            return inner(1, 2)

        @checks
        def inner(x):
            return x

        return inner(1)

    assert [made(several) for several in (False, True, False)] == [1, 3, 1]


def test_what_a_mapping_holds_is_looked_at_each_time():
    @checks
    def lengths(table: dict[str, int]) -> int:
        return len(table)

    assert lengths({"a": 1}) == 1
    with pytest.raises(TypeCheckError):
        lengths({"a": "b"})
    with pytest.raises(TypeCheckError):
        lengths({1: 1})


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Collection[str], {"a": 1}.keys(), {1: 1}.keys()),
        (deque[str], deque(["a"]), deque([1])),
        (type[np.floating], np.float32, np.int32),
        (Literal[1, 2], 1, 3),
        (list[Literal[1]] | None, [1], [3]),
    ],
)
def test_values_of_one_type_are_told_apart_where_annotations_do(kind, right, wrong):
    @checks
    def inner(x: kind) -> None:
        pass

    inner(right)
    with pytest.raises(TypeCheckError):
        inner(wrong)


def test_classes_of_one_name_are_told_apart():
    def made():
        class Own:
            pass

        @checks
        def inner(x: Own) -> Own:
            return x

        return Own, inner

    (one, takes_one), (other, takes_other) = made(), made()
    takes_one(one())
    takes_other(other())
    with pytest.raises(TypeCheckError):
        takes_other(one())
    with pytest.raises(TypeCheckError):
        takes_one(other())


def test_workers_side_by_side_have_one_thread_each():
    """The environment says so before anything imports PyTorch."""
    assert torch.get_num_threads() == 1 or "PYTEST_XDIST_WORKER" not in os.environ
