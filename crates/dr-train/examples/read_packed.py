"""Reads the weights of a model that `dr-train export` packed: read_packed.py FILE.safetensors"""

import json
import sys

import numpy as np
from safetensors import safe_open


def unpack(words, count):
    """Codes in two's complement: planes of 8, 4, 2 or 1 bits, the most significant first (see dr_kernels::layout)."""
    blocks = -(-count // 32)
    bits, done, codes = len(words) // blocks, 0, np.zeros(count, np.int32)
    for plane in (8, 4, 2, 1):
        if bits & plane:
            stream = words[done * blocks : (done + plane) * blocks].view(np.uint8)
            fields = np.unpackbits(stream, bitorder="little").reshape(-1, plane)[:count]
            codes, done = codes << plane | fields @ (1 << np.arange(plane)), done + plane
    return bits, np.where(codes >> (bits - 1), codes - (1 << bits), codes)


def read(path):
    """The weights in floats, by name."""
    with safe_open(path, "numpy") as file:
        for name, shape in json.loads(file.metadata()["dr-train"])["shapes"].items():
            bits, codes = unpack(file.get_tensor(name), int(np.prod(shape)))
            scales = file.get_tensor(name.removesuffix("weight") + "quantizers.weight_scales.0")
            yield name, bits, codes.reshape(shape) * scales.reshape(-1, *[1] * (len(shape) - 1))


for name, bits, weight in read(sys.argv[1]):
    print(f"{name} {weight.shape}: {bits} bits, {weight.min():.4f} to {weight.max():.4f}")
