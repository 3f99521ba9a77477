"""Denoisers where PyTorch's own tools meet them: its compiler, torch.func, half types, forks."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from fpmc import Source, methods, networks
from fpmc.diffusion import add_noise
from tests.helpers import images
from tests.test_denoisers import ALL, SHAPE, Small


@pytest.fixture(params=ALL)
def denoiser(request):
    return ALL[request.param](Source(images(12, SHAPE, 0), range(1, 13)))


@pytest.fixture
def network():
    return networks.Preconditioned(Small(), SHAPE)


@pytest.fixture
def z():
    return add_noise(images(3, SHAPE, 1), 0.7, 0)


class Graphs:
    """A backend of torch.compile that counts what it is given, and runs it as it is."""

    def __init__(self):
        self.operations = 0

    def __call__(self, graph, inputs):
        self.operations += sum(node.op.startswith("call") for node in graph.graph.nodes)
        return graph.forward


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.mark.usefixtures("as_users_do")
def test_analytical_denoisers_are_opaque_to_the_compiler(denoiser, graphs, z):
    compiled = torch.compile(denoiser, backend=graphs)
    assert torch.equal(compiled(z, 0.7), denoiser(z, 0.7))
    assert torch.equal(compiled(z, torch.tensor(0.25)), denoiser(z, 0.25))
    assert graphs.operations == 0
    around = torch.compile(lambda z: 2 * denoiser(z, 0.7) - z, backend=graphs)
    assert torch.equal(around(z), 2 * denoiser(z, 0.7) - z)
    assert graphs.operations == 2


@pytest.mark.usefixtures("as_users_do")
def test_one_graph_is_refused_with_the_reason(denoiser, network, graphs, z):
    for each, reason in (
        (denoiser, "analytical denoisers are opaque to torch.compile"),
        (network, r"of a network network\.denoise\(z, sigmas\) is one graph"),
    ):
        with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
            torch.compile(each, backend=graphs, fullgraph=True)(z, 0.7)


@pytest.mark.usefixtures("as_users_do")
def test_after_a_plain_compile_one_graph_is_the_same_answer_and_after_a_reset_an_error(
    denoiser, graphs, z
):
    """PyTorch keeps what it compiled by function and backend, and nobody is told."""
    torch.compile(denoiser, backend=graphs)(z, 0.7)
    whole = torch.compile(denoiser, backend=graphs, fullgraph=True)
    assert torch.equal(whole(z, 0.7), denoiser(z, 0.7))
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="are opaque to torch"):
        torch.compile(denoiser, backend=graphs, fullgraph=True)(z, 0.7)


@pytest.mark.usefixtures("as_users_do")
def test_a_network_is_compiled_behind_its_checks(network, graphs, z):
    compiled = torch.compile(network, backend=graphs)
    assert torch.equal(compiled(z, 0.7), network(z, 0.7))
    assert graphs.operations > 0
    one = torch.compile(network.denoise, backend=graphs, fullgraph=True)
    assert torch.equal(one(z, torch.full((3,), 0.7)), network(z, 0.7))


def test_the_compiler_is_not_imported_before_it_is_asked_for():
    code = (
        "import fpmc, sys, torch; s = fpmc.Source(torch.zeros(2, 1, 3, 3, dtype=torch.uint8));"
        "fpmc.methods.pspc_square(s, 3)(torch.zeros(1, 1, 3, 3), 1.0);"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


TRANSFORMS = {
    "vmap": lambda f, z: torch.func.vmap(lambda one: f(one[None])[0])(z),
    "jacrev": lambda f, z: torch.func.jacrev(f)(z[:1]),
    "jacfwd": lambda f, z: torch.func.jacfwd(f)(z[:1]),
    "grad": lambda f, z: torch.func.grad(lambda z: f(z).sum())(z),
    "vjp": lambda f, z: torch.func.vjp(f, z)[1](z),
    "jvp": lambda f, z: torch.func.jvp(f, (z,), (z,)),
}


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_passes_through_or_is_refused_with_what_helps(denoiser, network, transform, z):
    apply = TRANSFORMS[transform]
    for each in (denoiser, network):
        if isinstance(each, networks.Preconditioned) or "Gaussian" in repr(each):
            apply(lambda z, each=each: each(z, 0.7), z)
        else:
            with pytest.raises(TypeError, match=r"z: got a tensor inside a transform of torch\.fu"):
                apply(lambda z, each=each: each(z, 0.7), z)


@pytest.mark.usefixtures("as_users_do")
def test_a_noise_level_inside_a_transform_is_named(network, z):
    for each in (network, methods.wiener(Source(images(12, SHAPE, 0)))):
        with pytest.raises(TypeError, match=r"sigma: got a tensor inside a transform"):
            torch.func.vmap(lambda s, each=each: each(z, s))(torch.ones(2))


def _export(f, z):
    module = torch.nn.Module()
    module.forward = f
    torch.export.export(module, (z,))


def _fake(f, z):
    with FakeTensorMode() as mode:
        f(mode.from_tensor(z))


TRACERS = {
    "export": _export,
    "make_fx": lambda f, z: make_fx(lambda z: f(z))(z),
    "linearize": torch.func.linearize,
    "fake": _fake,
    "meta": lambda f, z: f(z.to("meta")),
}


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize("tracer", TRACERS)
def test_what_only_traces_is_refused_with_the_reason(denoiser, network, tracer, z):
    for each in (denoiser, network):
        with pytest.raises(TypeError, match=r"z: got a tensor without values.*network\.denoise"):
            TRACERS[tracer](lambda z, each=each: each(z, 0.7), z)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_constants_is_refused(denoiser, network, z):
    for each in (denoiser, network.requires_grad_(False)):
        answers = isinstance(each, networks.Preconditioned) or "Gaussian" in repr(each)
        if answers:
            traced = torch.jit.trace(lambda z, each=each: each(z, 0.7), (z,))
            torch.testing.assert_close(traced(z / 2), each(z / 2, 0.7))
        name = "sigma" if answers else "z"
        with pytest.raises(TypeError, match=rf"{name}: got a tensor inside torch\.jit\.trace"):
            torch.jit.trace(lambda z, s, each=each: each(z, s), (z, torch.tensor(0.7)))


def test_derivatives_in_forward_mode_are_right_or_refused(denoiser, z):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z.double(), z.double())
        if "Gaussian" in repr(denoiser):
            found = forward_ad.unpack_dual(denoiser(dual, 0.7)).tangent.flatten(1)
            torch.testing.assert_close(found, z.double().flatten(1) @ denoiser.matrix(0.7).T)
        else:
            with pytest.raises(RuntimeError, match="first derivatives only, in reverse mode"):
                denoiser(dual, 0.7)


@pytest.mark.usefixtures("as_users_do")
def test_a_nested_batch_is_named(denoiser, z):
    with pytest.raises(TypeError, match=r"z: got torch\.float32, nested, wanted a dense"):
        denoiser(torch.nested.nested_tensor(list(z)), 0.7)


def test_jacobians_by_torch_func_are_those_of_the_formula(z):
    wiener = methods.wiener(Source(images(12, SHAPE, 0)))
    jacobian = torch.func.jacrev(lambda z: wiener(z, 0.7))(z[:1].double())
    torch.testing.assert_close(jacobian.view(50, 50), wiener.matrix(0.7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_answered_in_their_type_with_their_own_rounding(denoiser, network, dtype, z):
    for each in (denoiser, network):
        half = z.to(dtype)
        answer = each(half, 0.7)
        assert answer.dtype == dtype
        exact = each(half.float(), 0.7)
        bound = 2 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
        assert (answer.float() - exact).abs().max() <= bound


def test_threads_that_call_at_the_same_time_get_their_own_answers(denoiser, z):
    sigmas = [0.1, 0.7, 5.0, 20.0]
    expected, found = [denoiser(z, s) for s in sigmas], {}

    def ask(i):
        found[i] = [denoiser(z, sigmas[i]) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, answer in enumerate(expected):
        assert all(torch.equal(each, answer) for each in found[i])


FORK = """
import os, torch, fpmc

def forked(work, *arguments):
    child = os.fork()
    if child == 0:
        os._exit(work(*arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def answered(denoiser, expected, threads):
    torch.set_num_threads(threads)
    try:
        return 0 if torch.allclose(denoiser(z, 0.5), expected) else 3
    except RuntimeError as error:
        told = "forked from one that had computed with several threads" in str(error)
        return 7 if told else 4

def statuses(make, before, after):
    torch.set_num_threads(before)
    denoiser = make(source)
    expected = denoiser(z, 0.5)
    found = {threads: forked(answered, denoiser, expected, threads) for threads in after}
    return int(found != after)

z = torch.zeros(4, 1, 12, 12)
source = fpmc.Source(torch.randint(0, 256, (64, 1, 12, 12), dtype=torch.uint8))
for make in (lambda source: fpmc.methods.ls(source, 5), fpmc.methods.wiener):
    for before, after in ((2, {2: 7, 1: 0}), (1, {1: 0})):
        assert forked(statuses, make, before, after) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_answers_or_says_why_it_would_wait():
    """After so many threads a process forks children with so many, each with its own ending.

    The processes that compute are themselves forked, from one that has computed nothing.
    """
    assert subprocess.run([sys.executable, "-c", FORK], check=False, timeout=120).returncode == 0
