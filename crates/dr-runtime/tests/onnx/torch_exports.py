#!/usr/bin/env python3
"""Small networks with random weights, exported by both of torch's exporters, with inputs and torch's outputs.

    pip install torch onnx onnxscript numpy
    torch_exports.py DIR [--only TEXT]

DIR gets a folder for each network, exporter and opset, as residual-old-11 or encoder-new-21. In it are model.onnx (with model.onnx.data for
residual-new-18), and batch2/ and batch5/ with input_0.npy and output_0.npy: all have a dynamic batch. `conformance.py exports=DIR` runs them.
"""
import argparse, sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

OLD, NEW = (11, 13, 17), (18, 21)


def conv_norm(inputs, outputs, size=3, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Convolutions, batch norms, additions and poolings."""
    shape = (3, 32, 32)

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 16, 5, 2)
        self.a, self.b = conv_norm(16, 16), conv_norm(16, 16)
        self.c, self.d, self.shortcut = conv_norm(16, 24, stride=2), conv_norm(24, 24), conv_norm(16, 24, 1, 2)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.shortcut(x) + self.d(F.relu(self.c(x))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Squeeze(nn.Module):
    """Depthwise convolutions, squeeze and excitation, hard-swish, hard-sigmoid, SiLU."""
    shape = (3, 32, 32)

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 16, stride=2)
        self.wide, self.depthwise, self.narrow = conv_norm(16, 48, 1), conv_norm(48, 48, 5, groups=48), conv_norm(48, 16, 1)
        self.squeeze, self.excite = nn.Conv2d(48, 12, 1), nn.Conv2d(12, 48, 1)
        self.last, self.head = conv_norm(16, 32, 1), nn.Linear(32, 10)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.depthwise(F.relu6(self.wide(x))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = F.silu(self.last(x + self.narrow(y)))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """Group norms, grouped convolutions, GELU, leaky ReLU."""
    shape = (3, 24, 24)

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.conv, self.second = nn.Conv2d(16, 32, 3, 2, 1, groups=4), nn.GroupNorm(8, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.gelu(self.first(self.stem(x)))
        x = F.leaky_relu(self.second(self.conv(x)), 0.1)
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    """A layer of a transformer over embedded tokens."""
    shape = (12,)

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 32), nn.Parameter(torch.randn(1, 12, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, activation='gelu', batch_first=True)
        self.head = nn.Linear(32, 6)

    def forward(self, x):
        x = self.layer(self.tokens(x) + self.positions)
        return F.softmax(self.head(x), -1)


class UNet(nn.Module):
    """Down and up again: concatenations, resizes of both kinds, a transposed convolution."""
    shape = (3, 32, 32)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = conv_norm(3, 8), conv_norm(8, 16), conv_norm(16, 32), conv_norm(32, 32)
        self.up3 = nn.Sequential(nn.ConvTranspose2d(32, 16, 2, 2), nn.BatchNorm2d(16))
        self.up2, self.up1 = conv_norm(16 + 32, 16), conv_norm(16 + 16, 8)
        self.last = nn.Conv2d(8 + 8, 2, 1)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        c = F.relu(self.c(F.avg_pool2d(b, 2)))
        d = F.relu(self.d(F.max_pool2d(c, 2)))
        x = F.relu(self.up2(torch.cat([self.up3(d), c], 1)))
        x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
        x = F.relu(self.up1(torch.cat([x, b], 1)))
        x = F.interpolate(x, size=a.shape[2:], mode='nearest')
        return torch.sigmoid(self.last(torch.cat([x, a], 1)))


NETWORKS = {'residual': Residual, 'squeeze': Squeeze, 'grouped': Grouped, 'encoder': Encoder, 'unet': UNet}


def made(constructor):
    """A network as if it were trained: no norm is the identity."""
    torch.manual_seed(1)
    network = constructor().eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.3, 2)
    return network


def inputs(constructor, batch):
    generator = torch.Generator().manual_seed(batch)
    if constructor is Encoder:
        return torch.randint(0, 50, (batch, *constructor.shape), generator=generator)
    return torch.randn(batch, *constructor.shape, generator=generator)


def spell_out(attention):
    """Has its products and its softmax exported one by one: torch's own way takes opset 14."""
    def forward(x, *_, **__):
        heads = [part.reshape(x.shape[0], x.shape[1], attention.num_heads, attention.head_dim).transpose(1, 2)
                 for part in F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)]
        weights = F.softmax(heads[0] @ heads[1].transpose(2, 3) / attention.head_dim ** 0.5, -1)
        return attention.out_proj((weights @ heads[2]).transpose(1, 2).reshape(x.shape)), None
    attention.forward = forward


def export(network, x, path, new, opset, external):
    names = {'input_names': ['input'], 'output_names': ['output'], 'opset_version': opset, 'dynamo': new}
    if new:
        names |= {'dynamic_shapes': ({0: torch.export.Dim.DYNAMIC},), 'external_data': external, 'verbose': False}
    else:
        names |= {'dynamic_axes': {'input': {0: 'batch'}, 'output': {0: 'batch'}}}
    torch.onnx.export(network, (x,), str(path), **names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--only', default='')
    arguments = parser.parse_args()
    # Else a whole encoder layer is one operator that the old exporter does not know.
    torch.backends.mha.set_fastpath_enabled(False)
    failed = 0
    for name, constructor in NETWORKS.items():
        for new, opset in [(False, opset) for opset in OLD] + [(True, opset) for opset in NEW]:
            case = f'{name}-{"new" if new else "old"}-{opset}'
            if arguments.only not in case:
                continue
            network = made(constructor)
            if constructor is Encoder and opset < 14:
                spell_out(network.layer.self_attn)
            folder = arguments.folder / case
            folder.mkdir(parents=True, exist_ok=True)
            try:
                export(network, inputs(constructor, 2), folder / 'model.onnx', new, opset, case == 'residual-new-18')
            except Exception as error:
                failed += 1
                print(f'{case}: {str(error).strip().splitlines()[-1]}')
                continue
            for batch in (2, 5):
                data = folder / f'batch{batch}'
                data.mkdir(exist_ok=True)
                x = inputs(constructor, batch)
                with torch.no_grad():
                    np.save(data / 'output_0.npy', network(x).numpy())
                np.save(data / 'input_0.npy', x.numpy())
            print(case)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
