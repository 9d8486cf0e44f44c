#!/usr/bin/env python3
"""Runs ONNX's own tests, and networks exported by torch, through a program, and compares the outputs.

    pip install onnx==1.19.1 numpy
    conformance.py [--work DIR] [--only TEXT] [--least N] [--again PROGRAM] [node] [light] [exports=DIR] [-- COMMAND...]

node     the tests of single operators that node-tests.txt names (in the package; later versions have none)
light    nine architectures whose weights are all made by ConstantOfShape (in the package)
exports  what torch_exports.py wrote to DIR

COMMAND is called once, as `COMMAND --list FILE`. Each line of FILE is one case: the model, a folder for outputs, and one .npy file for
each of the graph's inputs that is no initializer, in their order, with tabs between. Inputs are float32, int64 or bool, whatever the width
in the model. For each case the command writes outputs as 0.npy, 1.npy and so on to the folder, or why it cannot to error.txt there.
If it dies, what it was at has failed, and it is called again for the cases after that one.

With --again the models are those that `PROGRAM export` (dr-train) makes of them; `onnxruntime` as the command runs them there.

Without a command the cases and FILE (list.txt) are only written, to DIR (by default a folder that is deleted in the end).
The status is 0 if at least N tests passed (by default all).
"""
import argparse, subprocess, sys, tempfile
from glob import glob
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

DATA = Path(onnx.__file__).parent / 'backend' / 'test' / 'data'


class Case:
    """A model, its inputs and the outputs that it should have."""

    def __init__(self, name, model, inputs, outputs, rtol, atol):
        self.name, self.model, self.inputs, self.outputs, self.rtol, self.atol = name, model, inputs, outputs, rtol, atol

    def write(self, work, again):
        """Writes the inputs, and gives the line that describes the case."""
        folder = work / self.name
        self.out = folder / 'out'
        self.out.mkdir(parents=True, exist_ok=True)
        for old in self.out.iterdir():
            old.unlink()
        if again:
            model, self.model = self.model, folder / 'again.onnx'
            done = subprocess.run([again, 'export', '--model', model, '--out', self.model], capture_output=True, text=True)
            if done.returncode:
                (self.out / 'error.txt').write_text(done.stderr)
        paths = [folder / f'input_{i}.npy' for i in range(len(self.inputs))]
        for path, array in zip(paths, self.inputs):
            np.save(path, plain(array))
        return '\t'.join(str(path) for path in [self.model, self.out, *paths])

    def is_done(self):
        return any(self.out.iterdir())

    def failure(self):
        """Why the outputs are wrong, or None."""
        if (self.out / 'error.txt').exists():
            return (self.out / 'error.txt').read_text().strip()
        found = len(list(self.out.glob('*.npy')))
        if found != len(self.outputs):
            return f'{found} outputs, expected {len(self.outputs)}'
        for i, expected in enumerate(self.outputs):
            found, expected = np.load(self.out / f'{i}.npy'), plain(expected)
            if found.shape != expected.shape or found.dtype != expected.dtype:
                return f'output {i} is {found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}'
            if expected.dtype != np.float32:
                wrong = found != expected
            else:
                wrong = ~np.isclose(found, expected, self.rtol, self.atol, equal_nan=True)
            if wrong.any():
                at = tuple(int(axis[0]) for axis in np.nonzero(wrong))
                return f'output {i} has {wrong.sum()} of {wrong.size} wrong, the first at {at}: {found[at]}, expected {expected[at]}'
        return None


def plain(array):
    """An array of one of the types that outputs are compared in."""
    kinds = {'f': np.float32, 'i': np.int64, 'u': np.int64, 'b': np.bool_}
    return array.astype(kinds[array.dtype.kind], order='C')


def tensors(folder, name):
    """The arrays in name_0.pb, name_1.pb, ..."""
    count = len(glob(f'{folder}/{name}_*.pb'))
    return [numpy_helper.to_array(onnx.load_tensor(f'{folder}/{name}_{i}.pb')) for i in range(count)]


def node_cases():
    for name in (Path(__file__).parent / 'node-tests.txt').read_text().split():
        folder = DATA / 'node' / name
        data = folder / 'test_data_set_0'
        yield Case(name, folder / 'model.onnx', tensors(data, 'input'), tensors(data, 'output'), 1e-3, 1e-6)


def light_cases():
    for model in sorted((DATA / 'light').glob('*.onnx')):
        # What the package's own runner feeds and allows (it has no input files).
        pixels = np.arange(3 * 224 * 224, dtype=np.float64).reshape(1, 3, 224, 224) / (3 * 224 * 224)
        rtol = 2e-3 if 'densenet' in model.stem else 1e-3
        yield Case(model.stem, model, [pixels], tensors(model.parent, f'{model.stem}_output'), rtol, 1e-7)


def export_cases(folder):
    for data in sorted(Path(folder).resolve().glob('*/batch*')):
        arrays = {kind: [np.load(data / f'{kind}_{i}.npy') for i in range(len(glob(f'{data}/{kind}_*.npy')))] for kind in ['input', 'output']}
        yield Case(f'{data.parent.name}-{data.name}', data.parent / 'model.onnx', arrays['input'], arrays['output'], 1e-4, 1e-4)


def run(command, cases, lines, work):
    """Calls the command until all cases are done; those at which it died have an error then."""
    listed = work / 'list.txt'
    while cases:
        listed.write_text('\n'.join(lines) + '\n')
        status = subprocess.run([*command, '--list', str(listed)]).returncode
        done = next((i for i, case in enumerate(cases) if not case.is_done()), len(cases))
        if done < len(cases):
            (cases[done].out / 'error.txt').write_text(f'ended with status {status}')
        cases, lines = cases[done + 1:], lines[done + 1:]


def run_in_onnxruntime(cases, lines):
    import onnxruntime
    onnxruntime.set_default_logger_severity(4)
    for case, line in zip(cases, lines):
        model, out, *inputs = line.split('\t')
        try:
            session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
            kinds = [f'{x.type[7:-1]}' for x in session.get_inputs()]
            kinds = [{'float': 'float32', 'double': 'float64'}.get(kind, kind) for kind in kinds]
            feed = {x.name: np.load(path).astype(kind) for x, path, kind in zip(session.get_inputs(), inputs, kinds)}
            for i, result in enumerate(session.run(None, feed)):
                np.save(Path(out) / f'{i}.npy', plain(result))
        except Exception as error:
            if not case.is_done():
                (case.out / 'error.txt').write_text(str(error))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work')
    parser.add_argument('--only', default='')
    parser.add_argument('--least', type=int)
    parser.add_argument('--again', metavar='PROGRAM')
    parser.add_argument('what', nargs='*')
    arguments, command = sys.argv[1:], []
    if '--' in arguments:
        at = arguments.index('--')
        arguments, command = arguments[:at], arguments[at + 1:]
    arguments = parser.parse_args(arguments)
    cases = []
    for what in arguments.what or ['node', 'light']:
        kind, _, folder = what.partition('=')
        if kind not in ('node', 'light', 'exports'):
            parser.error(f'{what}: expected node, light or exports=DIR')
        cases += {'node': node_cases, 'light': light_cases, 'exports': lambda: export_cases(folder)}[kind]()
    cases = [case for case in cases if arguments.only in case.name]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary).resolve()
        lines = [case.write(work, arguments.again) for case in cases]
        if not command:
            (work / 'list.txt').write_text('\n'.join(lines) + '\n')
            print(f'{len(cases)} cases in {work}')
            return 0
        ready = [at for at, case in enumerate(cases) if not case.is_done()]
        ready, lines = [cases[at] for at in ready], [lines[at] for at in ready]
        if command == ['onnxruntime']:
            run_in_onnxruntime(ready, lines)
        else:
            run(command, ready, lines, work)
        failures = [(case.name, case.failure()) for case in cases]
    failures = [(name, why) for name, why in failures if why]
    for name, why in failures:
        print(f'{name}: {why}')
    passed = len(cases) - len(failures)
    print(f'{passed} passed, {len(failures)} failed')
    return 0 if cases and passed >= (len(cases) if arguments.least is None else arguments.least) else 1


if __name__ == '__main__':
    sys.exit(main())
