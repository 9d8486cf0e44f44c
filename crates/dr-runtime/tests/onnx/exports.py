#!/usr/bin/env python3
"""Exports a model to ONNX, runs that in onnxruntime, and compares what comes out with `dr-train predict` of the model.

    pip install onnx onnxruntime numpy
    exports.py [--precision P,P...] [--like FILE] [--threads N] MODEL INPUT.npy... -- PROGRAM

MODEL      a model file, or an ONNX file, in floats or quantized; a quantized one is exported at each of the precisions
INPUT.npy  arrays as the network takes them
PROGRAM    dr-train
--like     the ONNX file that the network comes from: the export has to have its inputs and results, by name and sizes, and is compared
           with it, too

For each export there are lines for what onnxruntime makes of it beside what `predict` makes of the model, and of the export: the relative
error of an input's results (the root of the summed squares of differences over that of the values, of the result where it is largest), the
median and the largest of all inputs; and in how many of all rows (of the last axis) the largest value is in another place. A value next to
the middle between two codes may be rounded either way, so quantized networks differ by a step of some codes, from the model as from the export.
"""
import argparse, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def results(model, inputs, threads):
    """All results for each input, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(model), options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    given = session.get_inputs()[0].name
    return [dict(zip(names, session.run(names, {given: np.load(path)}))) for path in inputs]


def predictions(command, inputs, names):
    """The same of `dr-train predict`."""
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([*command, '--out', out, *inputs], check=True, stdout=subprocess.DEVNULL)
        plain = lambda name: ''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)
        file = lambda path, name: f'{Path(path).stem}.npy' if len(names) == 1 else f'{Path(path).stem}.{plain(name)}.npy'
        return [{name: np.load(Path(out) / file(path, name)) for name in names} for path in inputs]


def compared(found, expected):
    """What the line of an export says."""
    errors, other, rows = [], 0, 0
    for one, like in zip(found, expected):
        error = 0.0
        for name, value in like.items():
            result = one[name]
            assert result.shape == value.shape, f'{name} {result.shape}: expected {value.shape}'
            difference = np.linalg.norm(result.astype(np.float64) - value)
            error = max(error, difference / max(np.linalg.norm(value.astype(np.float64)), 1e-300))
            other += (np.atleast_1d(result).argmax(-1) != np.atleast_1d(value).argmax(-1)).sum()
            rows += np.atleast_1d(value)[..., 0].size
        errors.append(error)
    return f'error {np.median(errors):.1e}, at most {max(errors):.1e}; largest elsewhere in {other} of {rows} rows'


def signature(path):
    """Names of inputs and results, with the sizes that inputs fix."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {constant.name for constant in graph.initializer}
    size = lambda dim: dim.dim_value if dim.dim_value > 0 else None
    inputs = {x.name: [size(dim) for dim in x.type.tensor_type.shape.dim] for x in graph.input if x.name not in constants}
    return inputs, [output.name for output in graph.output]


def main():
    arguments = sys.argv[1:]
    if '--' not in arguments or arguments[-1] == '--':
        sys.exit(__doc__)
    at = arguments.index('--')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--precision', default='')
    parser.add_argument('--like')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('model')
    parser.add_argument('inputs', nargs='+')
    of, program = parser.parse_args(arguments[:at]), arguments[at + 1:]
    with tempfile.TemporaryDirectory() as work:
        for precision in of.precision.split(','):
            chosen, out = ['--precision', precision] if precision else [], Path(work) / 'model.onnx'
            subprocess.run([*program, 'export', '--model', of.model, *chosen, '--out', out], check=True, stdout=subprocess.DEVNULL)
            onnx.checker.check_model(str(out))
            found = results(out, of.inputs, of.threads)
            ours = predictions([*program, 'predict', '--model', of.model, *chosen], of.inputs, list(found[0]))
            print(f'{precision or "floats"}: {out.stat().st_size:,} bytes, {compared(found, ours)}')
            again = predictions([*program, 'predict', '--model', out], of.inputs, list(found[0]))
            print(f'  beside the export in `predict`: {compared(found, again)}')
            if of.like:
                assert signature(out) == signature(of.like), f'{signature(out)}: expected {signature(of.like)}'
                print(f'  beside {of.like}: {compared(found, results(of.like, of.inputs, of.threads))}')


if __name__ == '__main__':
    main()
