#!/usr/bin/env bash
# Triton's CPU interpreter computes with the bits of bfloat16 numbers, not with their values.
#
# Library: triton 3.7.1 (TRITON_INTERPRET=1), torch 2.13.0.
# Guess: the interpreter is slow but right, so a kernel tested in it in bfloat16 is tested.
# Seen: 1.5 is converted to float32 as 1.5, but 1.5 * 1.5 is 2.5e-29, and tl.dot of an identity
#   with a matrix of ones gives 264257536 in place of 1: 16256², where 16256 is 1.0's bit pattern
#   read as a whole number. No warning. float16, float32 and float64 are right.
# For users: a bfloat16 kernel cannot be checked in the interpreter unless operands are decoded
#   before the product, or converted to float32 first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 triton==3.7.1 numpy==2.4.6
cat > "$folder/kernels.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def product(a, b, c, n: tl.constexpr):
    i = tl.arange(0, n)
    at = i[:, None] * n + i[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), out_dtype=tl.float32))


@triton.jit
def square(a, c, n: tl.constexpr):
    i = tl.arange(0, n)
    value = tl.load(a + i)
    tl.store(c + i, (value * value).to(tl.float32))


@triton.jit
def convert(a, c, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(c + i, tl.load(a + i).to(tl.float32))


def first(kernel, *arrays):
    out = torch.empty(16, 16)
    kernel[(1,)](*arrays, out, 16)
    return out.flatten()[0].item()


print("triton", triton.__version__, "torch", torch.__version__)
for dtype in (torch.float16, torch.float32, torch.float64):
    assert first(product, torch.eye(16, dtype=dtype), torch.ones(16, 16, dtype=dtype)) == 1.0
half = torch.full((16,), 1.5, dtype=torch.bfloat16)
eye, ones = torch.eye(16, dtype=torch.bfloat16), torch.ones(16, 16, dtype=torch.bfloat16)
seen = {
    "1.5 converted": first(convert, half),
    "1.5 * 1.5": first(square, half),
    "identity @ ones": first(product, eye, ones),
}
for name, value in seen.items():
    print(f"bfloat16 {name}: {value:.9g}")
assert seen["1.5 converted"] == 1.5
assert seen["identity @ ones"] == 16256.0**2, "the interpreter's products have changed"
assert abs(seen["1.5 * 1.5"]) < 1e-20, "the interpreter's arithmetic has changed"
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/kernels.py"
