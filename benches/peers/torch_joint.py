"""Images per second of joint training in PyTorch, as research code does it: fake quantization by tensor operations.

    python3 benches/peers/torch_joint.py --model resnet18 --size 224 --batch 64 --precisions 8,4 --device cuda

    python3 benches/peers/torch_joint.py --model resnet20 --size 32 --batch 128 --device cpu --threads 2

Beside it: the images per second that `dr-train train --model resnet18 --dataset folder --precisions 8,4` prints for each epoch.
Images are random and already on the device. Every precision has a batch, scales and BatchNorms of its own; the first and the last layer
stay at the highest width. Prints JSON: images per second of float training and of joint training, medians over steps.
"""

import argparse
import json
import statistics
import time

import torch
import torchvision
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet18")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--precisions", default="8,6,4,2")
parser.add_argument("--device", default="cuda")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--threads", type=int, help="all processors by default")
arguments = parser.parse_args()
WIDTHS = [int(width) for width in arguments.precisions.split(",")]
STORED = max(WIDTHS)
device = torch.device(arguments.device)
if arguments.threads:
    torch.set_num_threads(arguments.threads)
active = 0  # position in WIDTHS; None is float


def rounded(x):
    """Half to even; its gradient is one."""
    return x + (x.round() - x).detach()


class Quantized:
    """What a convolution and a linear layer have in common: scales for each width."""

    def prepare(self, pinned):
        self.pinned = pinned
        deviation = self.weight.detach().std()
        self.weight_scales = nn.ParameterList()
        self.input_scales = nn.ParameterList()
        for width in WIDTHS:
            scale = 3 * deviation / 2 ** (width - 1)
            self.weight_scales.append(nn.Parameter(scale.repeat(self.weight.shape[0])))
            self.input_scales.append(nn.Parameter(torch.tensor(4.0 / 2**width, device=scale.device)))

    def operands(self, x):
        if active is None:
            return x, self.weight
        position = WIDTHS.index(STORED) if self.pinned else active
        width, shape = WIDTHS[position], [-1] + [1] * (self.weight.dim() - 1)
        stored = self.weight_scales[WIDTHS.index(STORED)].view(shape)
        top, step = 2 ** (STORED - 1), 2 ** (STORED - width)
        codes = rounded((self.weight / stored).clamp(-top, top - 1))
        codes = rounded(codes / step).clamp(max=2 ** (width - 1) - 1)
        weight = codes * self.weight_scales[position].view(shape)
        scale = self.input_scales[position]
        return rounded((x / scale).clamp(0, 2**width - 1)) * scale, weight


class Conv(Quantized, nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(*self.operands(x), None)


class Linear(Quantized, nn.Linear):
    def forward(self, x):
        x, weight = self.operands(x)
        return nn.functional.linear(x, weight, self.bias)


class Norms(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in WIDTHS)

    def forward(self, x):
        return self.norms[active or 0](x)


def quantized(model):
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.__class__ = Conv if isinstance(module, nn.Conv2d) else Linear
            module.prepare(name in (layers[0], layers[-1]))
        for child, norm in list(module.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                setattr(module, child, Norms(norm.num_features))
    return model


def images_per_second(model, passes):
    global active
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    images = torch.rand(shape, device=device)
    labels = torch.arange(arguments.batch, device=device) % 10
    rates = []
    for _ in range(arguments.steps + 3):
        start = time.perf_counter()
        for active in passes:
            nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(arguments.batch * len(passes) / (time.perf_counter() - start))
    return round(statistics.median(rates[3:]), 1)


def resnet20():
    """For images of 32 x 32, with projections where sizes change."""
    block = torchvision.models.resnet.BasicBlock
    layers, channels = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for outputs, stride in [(16, 1), (32, 2), (64, 2)]:
        for first in (True, False, False):
            step, shortcut = (stride, None) if first else (1, None)
            if channels != outputs:
                shortcut = nn.Sequential(nn.Conv2d(channels, outputs, 1, step, bias=False), nn.BatchNorm2d(outputs))
            layers.append(block(channels, outputs, step, shortcut))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


make = resnet20 if arguments.model == "resnet20" else getattr(torchvision.models, arguments.model)
model = quantized(make()).to(device).train()
result = {"torch": torch.__version__, "device": arguments.device, **vars(arguments)}
result["float"] = images_per_second(model, [None])
result["joint"] = images_per_second(model, range(len(WIDTHS)))
print(json.dumps(result))
