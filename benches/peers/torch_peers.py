"""Times PyTorch on the shapes of `cargo bench -p dr-bench --features cuda -- device`, and of fake quantization, on an NVIDIA GPU.

    python3 benches/peers/torch_peers.py [size] > target/peers/torch.json

Prints a JSON line for each measurement: group, name and median milliseconds, by the device's clock.
"""

import json
import sys

import torch

SIZE = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
CACHE = 1 << 28


def measure(group, name, run, repeats=20, batch=10):
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(batch):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / batch)
    print(json.dumps({"group": group, "name": name, "ms": sorted(times)[len(times) // 2]}), flush=True)


def turns(make, bytes_each):
    """Calls with one of several copies after the other, larger than the cache together."""
    copies, state = [make() for _ in range(max(1, -(-CACHE // bytes_each)))], [0]

    def turn():
        state[0] = (state[0] + 1) % len(copies)
        return copies[state[0]]

    return turn


def gemm(m):
    group = f"device gemm/{m}x{m}x{m}"
    a = torch.randint(-128, 128, (m, m), dtype=torch.int8, device="cuda")
    b = torch.randint(-128, 128, (m, m), dtype=torch.int8, device="cuda").t()
    measure(group, "torch._int_mm", lambda: torch._int_mm(a, b))
    for dtype in (torch.bfloat16, torch.float16):
        x, w = (torch.randn(m, m, dtype=dtype, device="cuda") for _ in range(2))
        measure(group, f"torch {dtype}".replace("torch.", ""), lambda: x @ w)


def gemv(n):
    group = f"device gemv/1x{n}x{n}"
    x = torch.randn(1, n, dtype=torch.bfloat16, device="cuda")
    turn = turns(lambda: torch.randn(n, n, dtype=torch.bfloat16, device="cuda"), 2 * n * n)
    measure(group, "torch bfloat16", lambda: x @ turn())
    # Four bits, groups of 128, `[n, n / 2]` bytes and `[n / 128, n, 2]` scales and zero points.
    packed = lambda: torch._convert_weight_to_int4pack(
        torch.randint(0, 256, (n, n // 2), dtype=torch.uint8, device="cuda"), 8
    )
    scales = torch.rand(n // 128, n, 2, dtype=torch.bfloat16, device="cuda")
    turn = turns(packed, n * n // 2)
    measure(group, "torch._weight_int4pack_mm, groups of 128", lambda: torch._weight_int4pack_mm(x, turn(), 128, scales))


def fake_quantize():
    for rows, columns in [(8192, 8192), (512, 4608)]:
        x = torch.randn(rows, columns, device="cuda")
        scale = torch.rand(rows, device="cuda") + 0.1
        zero = torch.zeros(rows, dtype=torch.int32, device="cuda")
        group = f"fake_quantize/forward w8->w4/{rows * columns}"
        one = lambda: torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -8, 7)
        measure(group, "torch.fake_quantize_per_channel_affine", one)

        def double(x, stored, scale):
            codes = (x / stored[:, None]).round().clamp(-128, 127)
            return (codes * 0.0625).round().clamp(-8, 7) * scale[:, None]

        compiled = torch.compile(double)
        measure(group, "torch.compile of both roundings", lambda: compiled(x, scale, scale))


def copy(size):
    x = torch.randn(4 * size * size, device="cuda")
    y = torch.empty_like(x)
    measure("device copy", "torch copy_", lambda: y.copy_(x))


for step in (lambda: copy(SIZE), lambda: gemm(SIZE), lambda: gemv(2 * SIZE), fake_quantize):
    try:
        step()
    except Exception as error:  # one peer that is missing should not hide the others
        print(f"{step}: {error}", file=sys.stderr)
    torch.cuda.empty_cache()
