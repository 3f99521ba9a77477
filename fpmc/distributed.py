r"""One sum over several devices: each process sums over a part of the source.

For a source that is too large or too slow for one device. Rank r has the images
:math:`\mathcal{N}_r`, and with them the normalisers :math:`Z_{kr}` of its own posteriors. The
normalisers come first, then every rank's weights are divided by those of all:

.. math::
    Z_k = \sum_r Z_{kr}, \qquad
    \hat{x} = \sum_r \Big[\sum_{n \in \mathcal{N}_r} (R^\top w_{\cdot n}) \odot x_n\Big]
    \oslash R^\top 1, \qquad w_{kn} = \frac{e^{\ell_{kn}}}{Z_k} .

It is the answer of one process but for the order of its additions, and so are the gradients. A
script ``answer.py``,

.. code-block:: python

    import os
    import torch
    from torch import distributed
    import fpmc

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")

    data = fpmc.data.load("cifar10")
    collection = fpmc.methods.pspc_square(data.source())
    denoiser = fpmc.distributed.Distributed(collection).to(device)
    x = fpmc.source.to_float(data.test[:64])
    z = fpmc.diffusion.add_noise(x, 1.0, 0).to(device)
    x_hat = denoiser(z, 1.0)  # all of it, on every rank
    if distributed.get_rank() == 0:
        torch.save(x_hat.cpu(), "answer.pt")
    distributed.destroy_process_group()

runs on four processes, or on as many machines as torchrun is started on, as

.. code-block:: shell

    torchrun --nproc_per_node=4 answer.py

Noisy images need none of this where a source fits on one device: let every rank ask a collection of
its own for ``z[rank::world]``. With both, too large a source and many noisy images, give each
process group of a few ranks (``torch.distributed.new_group``) noisy images of its own. Fine-tuning
does either by itself: ``share=`` of :func:`fpmc.finetuning.finetune`.
"""

from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import kind
from fpmc.collection import FPMC
from fpmc.denoiser import DropIn
from fpmc.engine.ranks import Ranks

__all__ = ["Distributed"]


class Distributed(DropIn):
    """A collection whose sums are shared by processes, called as ``denoiser(z, sigma)``.

    All ranks call it at once, with the same z and sigma, and all get the whole answer. Its
    gradients with respect to z and the matrices of dense operators are whole on every rank, too:
    they are not to be averaged again. All ranks ask for them, of the same gradient with respect to
    the answer, or none does.

    Every rank sums over its part by the streaming path, whatever the operators and the device:
    b N P K / W operations for each product with a matrix, on a CPU without the running sums that
    squares have in one process. For b noisy images at a time, as many as the budget has room for,
    it adds up b (2 K + c h w) float64 numbers over the ranks, and b (3 K + c h w) on the way back
    and once there the matrices' gradients. Hashes of z and the operators are compared before.

    Args:
        collection: What one process would ask, the same on every rank.
        group: The process group that shares the sums, of ``torch.distributed``; all processes if
            left out.
        sharded: Whether the collection's source is this rank's part already, for instance of files
            that other machines do not have; its weights, if any, are then those of the whole, as
            with :meth:`fpmc.Source.shard`, and some parts may be empty. If left out, every rank has
            the same whole source, memory-mapped if it is large, and reads its part only.

    Raises:
        TypeError: If the collection is no :class:`fpmc.FPMC`.
        RuntimeError: If no process group was initialised.
        ValueError: If this process is not in the group, or no rank has an image; on a call, on all
            ranks, if they differ in z, sigma, operators, number or weights of the source's images,
            device's type, or in whether they want gradients; and what a collection says.
    """

    def __init__(self, collection: FPMC, group: Any = None, *, sharded: bool = False):
        if not isinstance(collection, FPMC):
            raise TypeError(f"collection: got {kind(collection)}, wanted an fpmc.FPMC")
        source = collection.source
        weights = source.log_weights
        about = (weights is not None,) if sharded else (len(source), weights)
        self._ranks = Ranks(group, (sharded, source.shape, *about))
        part = source if sharded else source.shard(self._ranks.rank, self._ranks.world)
        self._collection = copy(collection)
        self._collection.source = part

    def __repr__(self) -> str:
        rank, world = self._ranks.rank, self._ranks.world
        return f"Distributed({self._collection!r}, rank {rank} of {world})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self._collection.shape

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        return self._collection._answer(z, sigma, self._ranks)

    def _move(self, device: torch.device) -> None:
        self._collection = self._collection.to(device)
