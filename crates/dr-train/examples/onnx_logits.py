"""Runs an exported model on samples in onnxruntime: onnx_logits.py MODEL.onnx SAMPLES.safetensors LOGITS.safetensors"""

import sys

import numpy as np
import onnxruntime
from safetensors.numpy import load_file, save_file

model, samples, logits = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
images = load_file(samples)["images"]
batches = [session.run(["logits"], {"images": images[i : i + 100]})[0] for i in range(0, len(images), 100)]
save_file({"logits": np.concatenate(batches)}, logits)
