"""Groups of estimators: which they are, that they change nothing, and what work they save."""

import pytest
import torch

import fpmc
from fpmc.engine.cpu.compiled import MISSING
from fpmc.finetuning import fused, step
from fpmc.finetuning.groups import SMALLEST, grouped
from fpmc.operators import Box
from tests.helpers import images, relative

SHAPE = (3, 16, 16)
SIGMA = 0.6
needs_kernels = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def case(dtype=torch.uint8, n=600):
    """Noisy images, targets, squares of 5 x 5 with a floor, and a source of smooth images."""
    coarse = images(n, (3, 6, 6), 1).float()
    smooth = torch.nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear").clamp(-1, 1)
    stored = fpmc.source.to_uint8(smooth) if dtype == torch.uint8 else smooth.to(dtype)
    z = smooth[:3] + SIGMA * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    matrix = Box(SHAPE[1:], 5).dense(torch.float32).clamp(min=0.01)
    order = torch.randperm(len(matrix), generator=torch.Generator().manual_seed(3))
    return z, smooth[3:6] / 2, matrix[order], matrix, fpmc.Source(stored)


def whole(monkeypatch, *arguments, **options):
    """The step with all estimators in one group, in torch alone."""
    with monkeypatch.context() as patch:
        patch.setattr(fused, "fits", lambda source, device: False)
        return step.gradients(*arguments, SIGMA, **options)


def test_a_group_has_estimators_that_see_alike_and_all_are_in_one():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.eye(4).repeat_interleave(SMALLEST, 0)
    shuffled = torch.randperm(len(kinds), generator=generator)
    order, groups = grouped(kinds[shuffled] * torch.tensor([1.0, 1.1, 1.2, 1.3]))
    assert order.sort().values.tolist() == list(range(len(kinds)))
    assert [group.stop - group.start for group in groups] == [SMALLEST] * 4
    for group in groups:
        assert len(kinds[shuffled][order[group]].unique(dim=0)) == 1


@pytest.mark.parametrize("k", [1, SMALLEST, 2 * SMALLEST - 1, 2 * SMALLEST + 1, 300])
def test_groups_are_not_small_and_equal_queries_are_no_error(k):
    order, groups = grouped(torch.ones(k, 5))
    assert sorted(order.tolist()) == list(range(k))
    assert groups[0].start == 0
    assert groups[-1].stop == k
    assert min(group.stop - group.start for group in groups) >= min(k, SMALLEST)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_compiled_passes_find_what_torch_finds(monkeypatch, dtype):
    arguments = case(dtype)
    options = {"without": torch.arange(3), "only": torch.arange(1, 590)}
    for cut, bound in ((0.0, 2e-5), (step.CUT, 1e-3)):
        ours = step.gradients(*arguments, SIGMA, cut=cut, **options)
        exact = whole(monkeypatch, *arguments, cut=0.0, **options)
        for got, wanted in zip(ours[:3], exact[:3], strict=True):
            assert relative(got, wanted) < bound


@needs_kernels
def test_groups_take_fewer_images_than_all_estimators_together(monkeypatch):
    arguments = case()
    ours = step.gradients(*arguments, SIGMA).share
    assert ours < 0.8 * whole(monkeypatch, *arguments).share


@needs_kernels
def test_threads_change_nothing():
    arguments, before = case(), torch.get_num_threads()
    one = step.gradients(*arguments, SIGMA)
    try:
        torch.set_num_threads(3)
        several = step.gradients(*arguments, SIGMA)
    finally:
        torch.set_num_threads(before)
    assert several.share == pytest.approx(one.share, rel=1e-3)
    for got, wanted in zip(several[:3], one[:3], strict=True):
        assert relative(got, wanted) < 1e-5


@needs_kernels
def test_estimators_that_need_the_same_images_take_no_more_in_groups(monkeypatch):
    z, target, q, r, source = case()
    arguments = (z, target, torch.ones_like(q), r, source)
    ours, all_in_one = step.gradients(*arguments, SIGMA), whole(monkeypatch, *arguments)
    assert ours.share == pytest.approx(all_in_one.share, rel=0.05)
    assert relative(ours.loss, all_in_one.loss) < 1e-3


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_of_what_is_not_finite_is_nan(monkeypatch, compiled, place, bad):
    """Of z and of Q: tuning stops at such a loss. Compiled passes alone would find a number."""
    arguments = list(case())
    arguments[place] = arguments[place].clone()
    arguments[place].view(-1)[7] = bad
    if not compiled:
        monkeypatch.setattr(fused, "fits", lambda source, device: False)
    found = step.gradients(*arguments, SIGMA)
    assert found.loss.isnan()
    assert not found.to_q.isfinite().all()


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="only: got no images, wanted some of the source"):
        step.gradients(*case(n=9), SIGMA, only=torch.arange(0))
