"""Processes that share a source answer as one that has it all."""

import re
from datetime import timedelta
from functools import partial

import pytest
import torch
from torch import distributed

import fpmc
from fpmc import FPMC, Source
from fpmc.distributed import Distributed
from fpmc.operators import Dense
from fpmc.source import union
from tests.helpers import collections, exact, images, matrix, relative, side_by_side

SHAPE = (1, 8, 8)
N = 60
SIGMA = 1.5
PARTS = {"1": [60], "2": [59, 1], "3": [17, 0, 43]}
"""How many images each rank has, where the sources are given in parts."""


def faint(weighted=False):
    """A few images of low contrast; with weights, and in two tensors, one of them left out."""
    x = fpmc.source.to_uint8(0.5 * images(N, SHAPE, 5))
    if not weighted:
        return Source(x)
    return union(Source(x[:25]), Source(x[25:]), weights=[1.0, 3.0]).without([7])


def cases():
    """(Q, R), whether the source has weights, z's type and a budget, by name."""
    found = {
        name: (operators, False, torch.float64, None)
        for name, operators in collections(SHAPE, 0).items()
    }
    dense = tuple(Dense(matrix(9, SHAPE[1:], seed) + 0.01) for seed in (1, 2))
    found["weights, a small budget"] = dense, True, torch.float64, 60_000
    found["float32"] = dense, True, torch.float32, None
    found["float32, one pass"] = found["mixed"][0], True, torch.float32, None
    return found


def ask(denoiser, operators, dtype):
    """An answer, and its gradients with respect to z and the matrices."""
    z = images(5, SHAPE, 3, dtype).requires_grad_()
    leaves = [z, *(op.matrix.requires_grad_() for op in operators if isinstance(op, Dense))]
    x_hat = denoiser(z, SIGMA)
    loss = (x_hat * images(5, SHAPE, 4, dtype)).sum()
    return [x_hat.detach(), *torch.autograd.grad(loss, leaves)]


def reference(operators, source, z, sigma):
    """What one process answers by the paper's equations, in float64."""
    return exact(z, sigma, *operators, source)


def part(source, sizes, rank):
    """A rank's part of a source, of these sizes, weights as in the whole."""
    start = sum(sizes[:rank])
    chosen = source.shard(0, 1)
    chosen.images = union(source).images.part(start, start + sizes[rank])
    if source.log_weights is not None:
        chosen.log_weights = source.log_weights[start : start + sizes[rank]]
    return chosen


def answers(groups, rank):
    """By case and way to share, what this rank gets."""
    found = {}
    for name, (operators, weighted, dtype, budget) in cases().items():
        source = faint(weighted)
        whole = Distributed(FPMC(*operators, source, budget=budget))
        found[name, "whole"] = ask(whole, operators, dtype)
        for way, sizes in PARTS.items():
            if rank < len(sizes):
                collection = FPMC(*operators, part(source, sizes, rank), budget=budget)
                shared = Distributed(collection, groups[len(sizes)], sharded=True)
                found[name, way] = ask(shared, operators, dtype)
    return found


def mistakes(groups, rank):
    """What ranks are told that do not ask the same, by what differs."""
    (q, r), *_ = cases()["dense"]
    z, other = images(2, SHAPE, 0), rank == 1
    moved = Dense(q.matrix.detach() + 0.1 * other)
    source = faint()
    fewer = Source(source.images[: N - other])
    q, r = (Dense(op.matrix.detach()) for op in (q, r))

    def back():
        asked = z.clone().requires_grad_()
        Distributed(FPMC(q, r, source))(asked, 1.0).backward(z + other)

    calls = {
        "z": lambda: Distributed(FPMC(q, r, source))(z + other, 1.0),
        "z's shape": lambda: Distributed(FPMC(q, r, source))(z[: 1 + other], 1.0),
        "sigma": lambda: Distributed(FPMC(q, r, source))(z, 1.0 + other),
        "queries": lambda: Distributed(FPMC(moved, r, source))(z, 1.0),
        "source": lambda: Distributed(FPMC(q, r, fewer))(z, 1.0),
        "requires_grad": lambda: Distributed(FPMC(q, r, source))(z.requires_grad_(other), 1.0),
        "gradient": back,
        "no image": lambda: Distributed(FPMC(q, r, part(source, [0] * 3, rank)), sharded=True)(
            z.detach(), 1.0
        ),
        "group": lambda: Distributed(FPMC(q, r, source), groups[2]) and None,
    }
    return {name: told(call) for name, call in calls.items()}


def told(call):
    """The error's text, or None."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def work(rank, folder):
    """What one of three processes does."""
    torch.set_num_threads(1)
    place, wait = f"file://{folder}/store", timedelta(seconds=60)
    distributed.init_process_group("gloo", place, rank=rank, world_size=3, timeout=wait)
    groups = {n: distributed.new_group(list(range(n))) for n in (1, 2, 3)}
    found = answers(groups, rank), mistakes(groups, rank)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Each rank's answers, and what it was told of mistakes."""
    folder = tmp_path_factory.mktemp("ranks")
    side_by_side(work, folder, 3)
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.slow
def test_answers_and_gradients_are_those_of_one_process(outcomes):
    for name, (operators, weighted, dtype, _) in cases().items():
        source = faint(weighted)
        wanted = ask(partial(reference, operators, source), operators, dtype)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-6
        for rank, (found, _) in enumerate(outcomes):
            ways = [way for way in found if way[0] == name]
            assert len(ways) == (4, 3, 2)[rank]
            for way in ways:
                for ours, theirs in zip(found[way], wanted, strict=True):
                    assert relative(ours, theirs) < tolerance, (way, rank)


@pytest.mark.slow
def test_every_rank_has_the_same_bits(outcomes):
    (first, _), *others = outcomes
    for found, _ in others:
        for way, values in found.items():
            assert all(map(torch.equal, values, first[way])), way


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["z", "z's shape", "sigma", "queries", "source", "requires_grad", "gradient"]
)
def test_ranks_that_ask_for_different_things_are_all_told(outcomes, what):
    name = what.removesuffix("'s shape")
    for _, errors in outcomes:
        assert re.match(rf"{name}: got other values on other ranks of 3, wanted", errors[what])


@pytest.mark.slow
def test_a_source_without_images_and_a_foreign_group_are_errors(outcomes):
    assert all(
        errors["no image"].startswith("source: got no images on any") for _, errors in outcomes
    )
    assert [errors["group"] is None for _, errors in outcomes] == [True, True, False]
    assert outcomes[2][1]["group"].startswith("group: got one that this process is not in")


@pytest.mark.usefixtures("as_users_do")
def test_processes_must_be_initialised():
    collection = fpmc.methods.optimal(faint())
    with pytest.raises(RuntimeError, match=r"process group: got none, wanted torch\.distributed"):
        Distributed(collection)
    with pytest.raises(TypeError, match=r"collection: got Gaussian, wanted an fpmc\.FPMC"):
        Distributed(fpmc.methods.wiener(faint()))
