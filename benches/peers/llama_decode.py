"""Times llama.cpp's decoding of a model of TinyLlama-1.1B's sizes with random weights, as `--bench decode` does ours.

    pip install llama-cpp-python gguf numpy
    python3 benches/peers/llama_decode.py 2 FOLDER > target/peers/llama_decode.json     # threads, where the models go (2 GB)

Prints a JSON line for each type of weights: group, name and median milliseconds of a token. The prompt has 32 tokens, and the times
are those of tokens 33 to 96. As in llama.cpp's own files, the last layer of Q4_0 is Q8_0 (it is usually Q6_K).
"""

import json
import statistics
import sys
import time
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Llama

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 22, 2048, 5632, 32, 4, 32000, 2048
PROMPT, TOKENS, ROUNDS = 32, 64, 5


def write(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}".encode() for i in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)

    def matrix(name: str, outputs: int, inputs: int, kind: gguf.GGMLQuantizationType) -> None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8)
        # The scale of each block, a float of 16 bits, comes first.
        blocks[:, :, :2] = np.frombuffer(np.float16(1e-3).tobytes(), dtype=np.uint8)
        writer.add_tensor(name, blocks.reshape(outputs, -1), raw_dtype=kind)

    last = gguf.GGMLQuantizationType.Q8_0
    matrix("token_embd.weight", VOCABULARY, HIDDEN, last)
    matrix("output.weight", VOCABULARY, HIDDEN, last)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    keys = HIDDEN // HEADS * KV_HEADS
    for i in range(LAYERS):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(HIDDEN, dtype=np.float32))
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", np.ones(HIDDEN, dtype=np.float32))
        matrix(f"blk.{i}.attn_q.weight", HIDDEN, HIDDEN, kind)
        matrix(f"blk.{i}.attn_k.weight", keys, HIDDEN, kind)
        matrix(f"blk.{i}.attn_v.weight", keys, HIDDEN, kind)
        matrix(f"blk.{i}.attn_output.weight", HIDDEN, HIDDEN, kind)
        matrix(f"blk.{i}.ffn_gate.weight", INNER, HIDDEN, kind)
        matrix(f"blk.{i}.ffn_up.weight", INNER, HIDDEN, kind)
        matrix(f"blk.{i}.ffn_down.weight", HIDDEN, INNER, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    threads, folder = int(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Q8_0", "Q4_0"):
        path = folder / f"tinyllama-{name}.gguf"
        if not path.exists():
            write(path, gguf.GGMLQuantizationType[name])
        model = Llama(str(path), n_ctx=256, n_batch=64, n_threads=threads, n_threads_batch=threads, verbose=False)
        times = []
        for _ in range(ROUNDS):
            model.reset()
            model.eval(list(range(10, 10 + PROMPT)))
            for token in range(10, 10 + TOKENS):
                start = time.perf_counter()
                model.eval([token])
                times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps({"group": "decode/tinyllama-1.1b", "name": f"llama.cpp {name}", "ms": statistics.median(times), "amount": 1}))
        model.close()


if __name__ == "__main__":
    main()
