"""The type checker that tests run under finds each wrong call, also after right ones."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests import checked

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
