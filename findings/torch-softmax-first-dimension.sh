#!/usr/bin/env bash
# PyTorch's softmax along any dimension but the last does not sum to one over many numbers.
#
# Library: torch 2.13.0, on a CPU.
# Guess: float32 costs some digits of 1e-7, so that softmax over ten million log weights sums to 1 to
#   some 1e-5, whichever dimension it is taken along, and is exp(x - logsumexp(x)).
# Seen: along a dimension that is not the last, the denominator is added up one by one in float32, and
#   softmax over columns of a million random log weights sums to 1.0011, of ten million to 1.024. Of
#   2^25 equal ones it sums to 2.000, as the denominator stops at 2^24. Along the last dimension it is
#   added up in several lanes: 1.0004 for ten million. logsumexp is right to 1e-6 along both, and
#   log_softmax is not: it has softmax's denominator. No warning.
# For users: a posterior mean over N images, softmax(-d / (2 sigma^2), dim=0) @ x, is too large by that
#   factor. Take (x - x.logsumexp(dim)).exp(), or float64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/softmax.py" <<'PYTHON'
import torch

print("torch", torch.__version__)
draws = torch.Generator().manual_seed(0)


def total(weights):
    return weights.sum(dtype=torch.float64).item()


def sums(x):
    """What probabilities sum to: as a column, as a row, and by logsumexp of both."""
    column, row = x[:, None], x[None]
    return {
        "softmax, dim 0": total(column.softmax(0)),
        "log_softmax, dim 0": total(column.log_softmax(0).exp()),
        "softmax, last dim": total(row.softmax(1)),
        "logsumexp, dim 0": total((column - column.logsumexp(0)).exp()),
        "logsumexp, last dim": total((row - row.logsumexp(1)).exp()),
        "softmax of float64, dim 0": total(column.double().softmax(0)),
    }


found = {n: sums(2 * torch.randn(n, generator=draws)) for n in (10**5, 10**6, 10**7)}
found["2^25 equal"] = sums(torch.zeros(2**25))
for n, values in found.items():
    print(n, ", ".join(f"{name}: {value:.6f}" for name, value in values.items()))
for values in found.values():
    for name, value in values.items():
        if "logsumexp" in name or "float64" in name:
            assert abs(value - 1) < 1e-5, name
assert 5e-4 < found[10**6]["softmax, dim 0"] - 1 < 2e-3
assert 1e-2 < found[10**7]["softmax, dim 0"] - 1 < 5e-2
assert abs(found["2^25 equal"]["softmax, dim 0"] - 2) < 1e-3
assert abs(found["2^25 equal"]["softmax, last dim"] - 1) < 1e-3

# The mean of ten million images of one pixel, all of them 0.8, under nearly equal weights.
x = torch.full((10**7, 1), 0.8)
mean = (torch.randn(10**7, 1, generator=draws).softmax(0).double() * x).sum().item()
print(f"a posterior mean over images that are all 0.8: {mean:.4f}")
assert mean > 0.805
PYTHON
"$folder/venv/bin/python" "$folder/softmax.py"
