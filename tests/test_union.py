"""A union of sources is the source of all their images, and copies none of them."""

import functools
import math

import numpy as np
import pytest
import torch

import fpmc
from fpmc import FPMC, Source, augment, diffusion
from fpmc.engine.cpu.threads import ranges, shares
from fpmc.engine.precision import tolerance
from fpmc.engine.problem import Problem
from fpmc.finetuning.images import Tuned
from fpmc.metrics import nearest
from fpmc.operators import Box
from fpmc.source import union
from tests.helpers import PeakMemory, collections, images, relative, threads

SHAPE = (3, 6, 7)
N = 300
CUTS = {"a few": [7, 100, 300], "whole tiles": [64, 256, 300], "one image": [1, 2, 300]}
"""Where each part ends."""


def cut(x, ends):
    """The same images in several tensors."""
    return [x[first:last].clone() for first, last in zip([0, *ends], ends, strict=False)]


def both(ends, stored=torch.uint8, weighted=False):
    """A union, and the source of the same images in one tensor."""
    x = images(N, SHAPE, 0)
    x = fpmc.source.to_uint8(x) if stored == torch.uint8 else x.to(stored)
    weights = torch.arange(1.0, N + 1) if weighted else None
    parts = cut(x, ends)
    own = [None] * len(parts) if weights is None else cut(weights, ends)
    masses = None if weights is None else [w.sum() for w in own]
    sources = [Source(part, w) for part, w in zip(parts, own, strict=True)]
    return union(*sources, weights=masses), Source(x, weights)


def answers(source, operators, sigma, dtype, budget=None):
    """An answer and its gradient."""
    x = images(N, SHAPE, 0)[:3]
    z = diffusion.add_noise(x, sigma, 0).to(dtype).requires_grad_()
    answer = FPMC(*operators, source, budget=budget)(z, sigma)
    return answer.detach(), torch.autograd.grad(answer.square().sum(), z)[0]


@functools.cache
def of_one_tensor(structure, stored, weighted, *asked):
    """The answer and gradient that a union's are compared with, however it is cut."""
    _, source = both(CUTS["one image"], stored, weighted)
    return answers(source, collections(SHAPE, 0)[structure], *asked)


@pytest.mark.sweep
@pytest.mark.parametrize("structure", list(collections(SHAPE, 0)))
@pytest.mark.parametrize("ends", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_and_gradients_are_those_of_one_tensor(structure, ends, dtype):
    operators = collections(SHAPE, 0)[structure]
    for stored, weighted in ((torch.uint8, False), (torch.float32, True)):
        ours, _ = both(ends, stored, weighted)
        for sigma, budget in ((0.05, None), (1.0, 400_000), (20.0, None)):
            asked = sigma, dtype, budget
            found, slope = answers(ours, operators, *asked)
            wanted, expected = of_one_tensor(structure, stored, weighted, *asked)
            limit = 0.2 * tolerance(sigma) if dtype == torch.float32 else 1e-10
            assert relative(found, wanted) < limit
            assert (slope - expected).norm() <= 1e-4 * expected.norm() + 1e-6


@pytest.mark.parametrize("structure", list(collections(SHAPE, 0)))
def test_parts_of_whole_tiles_give_the_same_bits(structure):
    operators = collections(SHAPE, 0)[structure]
    for stored in (torch.uint8, torch.float32):
        ours, theirs = both(CUTS["whole tiles"], stored)
        for n in (1, 3):
            with threads(n):
                found, wanted = (answers(s, operators, 1.0, torch.float32) for s in (ours, theirs))
            assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("structure", ["PSPC-Square", "LS", "dense", "dense, per dimension"])
def test_the_cuda_kernels_merge_parts(structure, kept):
    """In Triton's interpreter, if there is no GPU."""
    pytest.importorskip("triton", reason="there is no Triton for this system")
    from dataclasses import replace

    from fpmc.engine.cuda import Cuda, has_kernel

    x, device = fpmc.source.to_uint8(images(20, SHAPE, 0)), torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda")
    parts = [part.to(device) for part in cut(x, [3, 4, 20])]
    ours = union(*map(Source, parts), weights=[1, 2, 3])
    theirs = Source(torch.cat(parts), ours.log_weights.exp())
    operators, sigma = collections(SHAPE, 0)[structure], 0.8
    z = diffusion.add_noise(theirs[:2].cpu(), sigma, 0).to(device)
    found = []
    for source in (ours, theirs):
        asked = Cuda(Problem(*operators, source, sigma))
        sizes = asked.sizes(len(z), device)
        found.append(asked.answer(z, sizes if kept or not sizes.n else replace(sizes, n=6)))
        assert has_kernel(*operators, source)
    assert relative(*found) < 1e-6


def test_nothing_is_copied():
    ours, _ = both(CUTS["a few"])
    parts = ours.parts
    more = union(ours, Source(parts[0]))
    assert [part.data_ptr() for part in more.parts[:3]] == [part.data_ptr() for part in parts]
    large = [torch.zeros(2000, *SHAPE, dtype=torch.uint8) for _ in range(3)]
    with PeakMemory() as meter:
        source = union(*map(Source, large))
        source.without([5])
    assert meter.peak < large[0].nbytes
    assert len(source) == 6000


@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
def test_positions_go_on_from_one_part_to_the_next(stored):
    ours, theirs = both(CUTS["a few"], stored)
    assert ours.shape == theirs.shape
    assert repr(ours) == repr(theirs)
    index = [slice(5, 9), slice(0, 300, 7), slice(200, 100), slice(None), [299, 0, 7, 6]]
    index += [torch.tensor([100, 99, -1]), torch.arange(N) % 3 == 0]
    for at in index:
        assert torch.equal(ours[at], theirs[at])
    with pytest.raises(IndexError, match="index: got positions out of range, wanted -300 to 299"):
        ours[[300]]


def test_unions_of_unions_are_the_union_of_all():
    a, b, c = (Source(part) for part in cut(images(N, SHAPE, 0), CUTS["a few"]))
    for nested in (union(union(a, b), c), union(a, union(b, c)), union(union(a, b, c))):
        assert len(nested.parts) == 3
        assert nested.log_weights is None
        assert torch.equal(nested[:], union(a, b, c)[:])


def test_weights_are_masses_of_the_sources():
    a, b = Source(images(2, SHAPE, 0), [1, 3]), Source(images(3, SHAPE, 1))
    share = union(a, b, weights=[2, 6]).log_weights.exp()
    torch.testing.assert_close(share, torch.tensor([1 / 16, 3 / 16, *[0.25] * 3]).double())
    share = union(a, b).log_weights.exp()
    torch.testing.assert_close(share, torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2]).double())


def test_to_leave_out_and_to_unite_commute():
    a, b = Source(images(5, SHAPE, 0)), Source(images(3, SHAPE, 1))
    ours, theirs = union(a.without([1]), b), union(a, b).without([1])
    torch.testing.assert_close(ours.log_weights, theirs.log_weights)


def test_labels_are_kept_and_copies_have_their_parents():
    x = fpmc.source.to_uint8(images(4, SHAPE, 0))
    source = Source(x, labels=[3, 1, 4, 1])
    flips = augment.horizontal_flips(x)
    whole = union(source, flips)
    assert whole.labels.tolist() == [3, 1, 4, 1, *(source.labels[flips.parents].tolist())]
    ones = whole.of_class(1)
    assert torch.equal(ones[2:].flip(3).sort(0).values, ones[:2].sort(0).values)
    assert sorted(ones.parents.tolist()) == [-1, -1, 0, 1]
    assert union(source, Source(x)).labels is None


def test_an_image_is_left_out_with_its_copies():
    x = fpmc.source.to_uint8(images(4, SHAPE, 0))
    flips, shifts = augment.horizontal_flips(x), augment.translations(x, 7)
    source = union(union(Source(x), flips), shifts)
    parents = torch.cat([torch.full((4,), -1), flips.parents, shifts.parents])
    assert torch.equal(source.parents, parents)
    gone = source.without([2]).log_weights == -torch.inf
    assert torch.equal(gone, (parents == 2) | (torch.arange(15) == 2))
    assert (source.without([5]).log_weights == -torch.inf).nonzero().tolist() == [[5]]
    with pytest.raises(ValueError, match="index: got every image that is left"):
        source.without([0, 1, 2, 3])


def test_parents_move_with_their_source():
    x, y = (fpmc.source.to_uint8(images(n, SHAPE, n)) for n in (4, 3))
    inner = union(Source(x), augment.vertical_flips(x, 2))
    whole = union(Source(y), inner)
    assert torch.equal(whole.parents[7:], inner.parents[4:] + 3)
    again = augment.Augmented(x[:1], torch.tensor([4]), torch.zeros(1, 9).double())
    assert union(inner, again).parents[-1] == inner.parents[4]  # a copy of a copy


def test_tuning_leaves_out_all_copies_of_an_image():
    """However it comes: as the original, as one of the copies, or as pixels alone."""
    x = fpmc.source.to_uint8(images(4, SHAPE, 0))
    source = union(Source(x), augment.horizontal_flips(x), augment.vertical_flips(x))
    family = [2, *(source.parents == 2).nonzero().flatten().tolist()]
    assert len(family) == 3
    for tuned in (Tuned(None, source), Tuned(x, source)):
        assert tuned.positions(torch.tensor([2])).tolist() == family
    assert Tuned(None, source).positions(torch.tensor(family[1:2])).tolist() == family


def test_a_union_on_disk_stays_there(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", array)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    source = union(Source(torch.from_numpy(array[:9])), Source(mapped))
    assert source.parts[1].data_ptr() == mapped.ctypes.data
    theirs = Source(torch.from_numpy(np.concatenate([array[:9], array])))
    op = Box(SHAPE[1:], 3)
    for found, wanted in zip(
        *(answers(s, (op, op), 0.5, torch.float32) for s in (source, theirs)), strict=True
    ):
        assert relative(found, wanted) < 1e-6


def test_methods_and_posteriors_take_unions():
    ours, theirs = both(CUTS["a few"])
    z = diffusion.add_noise(ours[:1], 0.5, 0)
    for method in (fpmc.methods.wiener, lambda s: fpmc.methods.els(s, 3), fpmc.methods.es):
        assert relative(method(ours)(z, 0.5), method(theirs)(z, 0.5)) < 1e-6
    assert torch.equal(nearest(z, ours)[1], nearest(z, theirs)[1])
    op = Box(SHAPE[1:], 3)
    weights = [FPMC(op, op, source).posterior(z, 0.5).weights() for source in (ours, theirs)]
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("sizes", [[1], [64], [1, 1, 1], [65, 200, 3], [640, 1]])
@pytest.mark.parametrize("cores", [1, 2, 7])
def test_shares_cover_every_part_once(sizes, cores):
    for lanes in (1, 64):
        found = [share for thread in shares(sizes, cores, lanes) for share in thread]
        for part, size in enumerate(sizes):
            own = [(begin, end) for which, begin, end in found if which == part]
            assert [n for begin, end in own for n in range(begin, end)] == list(range(size))
            assert all(begin % lanes == 0 for begin, _ in own)
        tiles = [math.ceil(size / lanes) for size in sizes]
        assert len(shares(sizes, cores, lanes)) == len(ranges(sum(tiles), cores, 1))
    assert [s[1:] for (s,) in shares(sizes[:1], cores, 64)] == ranges(sizes[0], cores, 64)


@pytest.mark.parametrize(
    ("sources", "options", "error", "message"),
    [
        (lambda x: (), {}, TypeError, "sources: got nothing as the first, wanted an fpmc.Source"),
        (lambda x: (x,), {}, TypeError, "sources: got Tensor as the first"),
        (lambda x: (Source(x), x), {}, TypeError, "got Tensor, wanted an fpmc.Source or what"),
        (
            lambda x: (Source(x), Source(x.float() / 127.5 - 1)),
            {}, TypeError, "sources: got torch.uint8 and torch.float32, wanted one type",
        ),
        (
            lambda x: (Source(x), Source(x[..., 1:])),
            {}, ValueError, r"sources: got images of shape \(3, 6, 7\) and \(3, 6, 6\)",
        ),
        (lambda x: (Source(x),), {"weights": [0]}, ValueError, "weights: got values that are not"),
        (lambda x: (Source(x),), {"weights": [1, 2]}, ValueError, r"weights: got shape \(2,\)"),
        (
            lambda x: (Source(x[:1]), augment.horizontal_flips(x)),
            {}, ValueError, "parents: got 1, wanted positions in the first source, up to 0",
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("as_users_do")
def test_what_cannot_be_united_is_an_error(sources, options, error, message):
    x = fpmc.source.to_uint8(images(2, SHAPE, 0))
    with pytest.raises(error, match=message):
        union(*sources(x), **options)


@pytest.mark.parametrize(
    ("parents", "error", "message"),
    [
        ([0.5, 1, 1], TypeError, "parents: got something else than whole numbers"),
        ([0, 1], ValueError, r"parents: got shape \(2,\), wanted \(3,\)"),
        ([-1, 3, 0], ValueError, "parents: got -1 to 3, wanted positions up to 2, or -1"),
        ([-1, 0, 1], ValueError, "parents: got positions of copies, wanted those of originals"),
    ],
)
def test_bad_parents_are_an_error(parents, error, message):
    with pytest.raises(error, match=message):
        Source(images(3, SHAPE, 0), parents=parents)


def test_a_union_moves_as_a_whole_and_keeps_the_name_of_its_dataset():
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    named, unnamed = Source(images, dataset="digits"), Source(images + 1)
    joined = union(named, unnamed).to("cpu")
    assert joined.dataset == "digits"
    assert torch.equal(joined[:], union(unnamed, named)[[3, 4, 5, 0, 1, 2]])
    assert union(named, Source(images, dataset="photos")).dataset is None
