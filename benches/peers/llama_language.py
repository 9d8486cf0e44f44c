"""What llama.cpp's types of weights cost a language model: perplexity of a text, divergence from its floats, bytes and speed.

    pip install llama-cpp-python numpy
    python3 benches/peers/llama_language.py MODEL.gguf TEXT FOLDER [--tokens N] [--types F16,Q8_0,Q4_0] [--no-speed]

llama.cpp's quantizer makes each type from the model; the files stay in FOLDER. Texts are read in windows of 512 tokens, each on its own, as
`dr-train eval` does. Speeds are medians of five, on two threads: a prompt of 512 tokens, 64 tokens
after it, and 64 tokens of an empty text. Prints a JSON line for each type; `docs/language_plot.py` draws them beside ours.
"""

import argparse
import ctypes
import json
import math
import statistics
import time
from pathlib import Path

import llama_cpp
import numpy as np

WINDOW, TOKENS, ROUNDS, THREADS = 512, 64, 5, 2
TYPES = {
    "F32": 0, "F16": 1, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_0": 8, "Q4_K_M": 15, "Q4_1": 3, "Q4_0": 2, "IQ4_XS": 30,
    "Q3_K_M": 12, "IQ3_S": 26, "Q2_K": 10,
}  # fmt: skip


def quantized(model: Path, folder: Path, name: str) -> Path:
    path = folder / f"{model.stem}-{name}.gguf"
    if not path.exists():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize, options.nthread = TYPES[name], True, THREADS
        failed = llama_cpp.llama_model_quantize(str(model).encode(), str(path).encode(), ctypes.byref(options))
        if failed:
            raise SystemExit(f"llama.cpp cannot make {name} of {model}")
    return path


def load(path: Path, logits_all: bool) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        str(path), n_ctx=2 * WINDOW, n_batch=WINDOW, n_threads=THREADS, n_threads_batch=THREADS, logits_all=logits_all, verbose=False
    )


def log_softmax(model: llama_cpp.Llama, tokens: list[int]) -> np.ndarray:
    model.reset()
    model.eval(tokens)
    logits = model.scores[: len(tokens)]
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def quality(paths: dict[str, Path], text: str, count: int | None) -> dict[str, dict]:
    models = {name: load(path, True) for name, path in paths.items()}
    tokens = next(iter(models.values())).tokenize(text.encode(), add_bos=False, special=False)[: count and count + 1]
    found = {name: {"loss": 0.0, "divergence": 0.0, "same": 0} for name in models}
    positions = 0
    for start in range(0, len(tokens) - 1, WINDOW):
        window, targets = tokens[start : start + WINDOW], tokens[start + 1 : start + WINDOW + 1]
        window = window[: len(targets)]
        reference = None
        for name, model in models.items():
            rows = log_softmax(model, window)
            if reference is None:
                reference = rows
            found[name]["loss"] -= float(rows[np.arange(len(targets)), targets].sum())
            found[name]["divergence"] += float((np.exp(reference) * (reference - rows)).sum())
            found[name]["same"] += int((reference.argmax(axis=1) == rows.argmax(axis=1)).sum())
        positions += len(targets)
    for values in found.values():
        values["perplexity"] = math.exp(values.pop("loss") / positions)
        values["divergence"] /= positions
        values["same_top1"] = 100 * values.pop("same") / positions
        values["tokens"] = positions
    return found


def speed(path: Path) -> dict[str, float]:
    model = load(path, False)
    prompt, after, empty = [], [], []
    for _ in range(ROUNDS):
        model.reset()
        start = time.perf_counter()
        model.eval(list(range(100, 100 + WINDOW)))
        prompt.append(WINDOW / (time.perf_counter() - start))
        for times in (after, empty):
            start = time.perf_counter()
            for token in range(100, 100 + TOKENS):
                model.eval([token])
            times.append(TOKENS / (time.perf_counter() - start))
            model.reset()
    return {name: statistics.median(times) for name, times in (("prompt", prompt), ("after", after), ("empty", empty))}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model", type=Path)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--tokens", type=int)
    arguments.add_argument("--types", default=",".join(TYPES))
    arguments.add_argument("--no-speed", action="store_true")
    options = arguments.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    names = options.types.split(",")
    paths = {name: quantized(options.model, options.folder, name) for name in names}
    found = quality(paths, options.text.read_text(), options.tokens)
    for name, path in paths.items():
        row = {"name": name, "bytes": path.stat().st_size, **found[name]}
        if not options.no_speed:
            row |= speed(path)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
