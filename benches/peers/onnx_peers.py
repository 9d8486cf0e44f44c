"""Times onnxruntime on the shapes of `cargo bench -- "gemm|gemv|network"`, on a CPU.

    pip install onnxruntime onnx numpy
    python3 benches/peers/onnx_peers.py [threads] > target/peers/onnxruntime.json

Prints a JSON line for each measurement: group, name and median milliseconds. What memory limits is done with several copies of
its weights, larger than the caches together, as in the Rust benchmarks.
"""

import json
import os
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 2
CACHES = 1 << 29
RNG = np.random.default_rng(1)


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = model if isinstance(model, (bytes, str)) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def measure(group, name, model, feed, products=1, seconds=1.5):
    """The median over about `seconds` of runs, each of so many `products`, after a warm-up."""
    one = session(model)
    for _ in range(3):
        one.run(None, feed)
    times, start = [], time.perf_counter()
    while len(times) < 10 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        one.run(None, feed)
        times.append(time.perf_counter() - before)
    print(json.dumps({"group": group, "name": name, "ms": float(np.median(times) * 1e3 / products)}), flush=True)


def graph(nodes, inputs, outputs, initializers):
    made = helper.make_graph(nodes, "peer", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def tensor(name, array, kind):
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def matmul_integer(m, n, k, products=1):
    """As many products of one input, each with weights of its own."""
    w = lambda: RNG.integers(-128, 128, (k, n), dtype=np.int8)
    return graph(
        [helper.make_node("MatMulInteger", ["x", f"w{i}"], [f"y{i}"]) for i in range(products)],
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [m, k])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.INT32, [m, n]) for i in range(products)],
        [tensor(f"w{i}", w(), TensorProto.INT8) for i in range(products)],
    )


def matmul_nbits(n, k, bits, products, block=32):
    packed = lambda: RNG.integers(0, 256, (n, k // block, block * bits // 8), dtype=np.uint8)
    scales = RNG.random((n * k // block,), dtype=np.float32)
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = lambda i: helper.make_node(
        "MatMulNBits", ["x", f"w{i}", "s"], [f"y{i}"], domain="com.microsoft", **attributes
    )
    return graph(
        [node(i) for i in range(products)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, k])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1, n]) for i in range(products)],
        [tensor(f"w{i}", packed(), TensorProto.UINT8) for i in range(products)]
        + [tensor("s", scales, TensorProto.FLOAT)],
    )


def resnet20(batch):
    """ResNet-20 for 32x32 colour images with random weights, BatchNorm folded: as it would be served."""
    nodes, initializers, count = [], [], [0]

    def conv(x, channels, outputs, kernel, stride, relu):
        i = count[0]
        count[0] += 1
        w = RNG.normal(0, (2 / (channels * kernel * kernel)) ** 0.5, (outputs, channels, kernel, kernel))
        initializers.append(tensor(f"w{i}", w.astype(np.float32), TensorProto.FLOAT))
        initializers.append(tensor(f"b{i}", np.zeros(outputs, np.float32), TensorProto.FLOAT))
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], strides=[stride] * 2, pads=pads, kernel_shape=[kernel] * 2)
        )
        if not relu:
            return f"c{i}"
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        return f"r{i}"

    x, channels = conv("x", 3, 16, 3, 1, True), 16
    for stage in range(3):
        for block in range(3):
            outputs, stride = 16 << stage, 2 if stage > 0 and block == 0 else 1
            y = conv(conv(x, channels, outputs, 3, stride, True), outputs, outputs, 3, 1, False)
            shortcut = conv(x, channels, outputs, 1, stride, False) if channels != outputs else x
            nodes.append(helper.make_node("Add", [y, shortcut], [f"a{stage}{block}"]))
            nodes.append(helper.make_node("Relu", [f"a{stage}{block}"], [f"s{stage}{block}"]))
            x, channels = f"s{stage}{block}", outputs
    w = RNG.normal(0, 0.1, (64, 10)).astype(np.float32)
    initializers.append(tensor("head", w, TensorProto.FLOAT))
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pool"]))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["y"]))
    return graph(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        initializers,
    )


class Images(CalibrationDataReader):
    def __init__(self, batch):
        self.batches = iter([{"x": RNG.normal(0, 1, (batch, 3, 32, 32)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.batches, None)


def main():
    for m, n, k in [(1024, 1024, 1024), (128, 4096, 4096), (196, 512, 4608)]:
        x = {"x": RNG.integers(0, 256, (m, k), dtype=np.uint8)}
        measure(f"gemm/{m}x{n}x{k}", "onnxruntime MatMulInteger", matmul_integer(m, n, k), x)
    n = k = 8192
    count = CACHES // (n * k)
    x = {"x": RNG.integers(0, 256, (1, k), dtype=np.uint8)}
    measure(f"gemv/{n}x{k}", "onnxruntime MatMulInteger", matmul_integer(1, n, k, count), x, count)
    x = {"x": RNG.normal(0, 1, (1, k)).astype(np.float32)}
    for bits in (4, 2):
        count = CACHES * 8 // (n * k * bits)
        name = f"onnxruntime MatMulNBits w{bits}, groups of 32"
        measure(f"gemv/{n}x{k}", name, matmul_nbits(n, k, bits, count), x, count)
    for batch in (1, 64):
        group = f"network/resnet20 {batch}x3x32x32"
        x = {"x": RNG.normal(0, 1, (batch, 3, 32, 32)).astype(np.float32)}
        model = resnet20(batch)
        measure(group, "onnxruntime f32", model, x)
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("float.onnx", "int8.onnx")]
            onnx.save(model, paths[0])
            quantize_static(
                *paths, Images(batch), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8, per_channel=True,
            )
            measure(group, "onnxruntime QDQ int8", paths[1], x)


if __name__ == "__main__":
    main()
