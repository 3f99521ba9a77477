#!/usr/bin/env bash
# PyTorch's multinomial draws the second half of ten million equal items more often than the first.
#
# Library: torch 2.13.0, on a CPU.
# Guess: with replacement=True, n items of equal weight are each drawn equally often, for all n that
#   it takes, which is 2^24.
# Seen: the weights are added up one by one in their own type. In float32 with probabilities of 1e-7,
#   each sum is rounded to a multiple of up to 6e-8. The last four tenths of the items are drawn 1.12
#   times as often as they should be, the two tenths before the middle 0.84 times. With a million
#   items the tenths differ by 1.7%. float64 weights are right. No warning. (PyTorch's issue 43115, open since
#   2020, has it with weights of 1 and 2.)
# For users: hand over float64 weights, or draw by argmax of log weights plus Gumbel noise, when images
#   are drawn from a posterior over a large source.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/draws.py" <<'PYTHON'
import torch

print("torch", torch.__version__)


def tenths(items, dtype, drawn=4_000_000):
    """How often each tenth of the items is drawn, beside how often it should be."""
    weights = torch.full((items,), 1 / items, dtype=dtype)
    draws = torch.Generator().manual_seed(0)
    found = torch.multinomial(weights, drawn, replacement=True, generator=draws)
    return torch.bincount(found * 10 // items, minlength=10).double() * 10 / drawn


found = {}
for items in (10**5, 10**6, 10**7):
    for dtype in (torch.float32, torch.float64):
        found[items, dtype] = tenths(items, dtype)
        print(f"{items:,} items, {dtype}:", *(f"{x:.3f}" for x in found[items, dtype]))
# A tenth is drawn 400,000 times: one standard error is 0.0015.
for (items, dtype), share in found.items():
    if dtype == torch.float64 or items == 10**5:
        assert (share - 1).abs().max() < 0.007
assert found[10**6, torch.float32].min() < 0.99
assert found[10**7, torch.float32][5:].min() > 1.04
assert found[10**7, torch.float32][3:5].max() < 0.85
PYTHON
"$folder/venv/bin/python" "$folder/draws.py"
