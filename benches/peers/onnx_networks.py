"""Times a quantized network of ours in turns with the ONNX file that it was made of in onnxruntime, and with quantized ones of its own.

    pip install onnxruntime numpy
    cargo build --release -p dr-runtime --features npy --example images
    python3 benches/peers/onnx_networks.py OURS.safetensors INPUT.npy FLOAT.onnx [QUANTIZED.onnx ...]

The input's first item is repeated to batches of 1 and 16. Two threads. Each round runs every one of them for two seconds; the table has the medians of
the rounds' medians in milliseconds, and the bytes of the files.
"""

import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort

THREADS = 2
ROUNDS = 5
BATCHES = (1, 16)
SECONDS = 2.0


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def peer(one, x):
    feed = {one.get_inputs()[0].name: x}
    for _ in range(3):
        one.run(None, feed)
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        one.run(None, feed)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def ours(program, model, given, batch):
    """Milliseconds at each precision."""
    command = [program, model, given, str(batch), str(THREADS)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: float(ms) for name, ms in re.findall(r"^ *(\S+) batch +\d+ +([\d.]+) ms", text, re.M)}


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    model, given, *peers = sys.argv[1:]
    program = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release/examples/images"
    sessions = {path: session(path) for path in peers}
    first = np.load(given)[:1]
    times = {}
    for round_number in range(ROUNDS):
        for batch in BATCHES:
            x = np.repeat(first, batch, 0)
            for name, ms in ours(program, model, given, batch).items():
                times.setdefault((name, batch), []).append(ms)
            for path, one in sessions.items():
                times.setdefault((path, batch), []).append(peer(one, x))
        print(f"round {round_number + 1} of {ROUNDS}", file=sys.stderr)
    names = list(dict.fromkeys(name for name, _ in times))
    print(f"| | bytes | {' | '.join(f'batch {batch}, ms' for batch in BATCHES)} |")
    print("|---" * (2 + len(BATCHES)) + "|")
    for name in names:
        path = name if name in sessions else model
        cells = [f"{statistics.median(times[name, batch]):.2f}" for batch in BATCHES]
        print(f"| {pathlib.Path(name).name} | {os.path.getsize(path):,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
