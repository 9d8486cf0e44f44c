"""Images per second of torchvision's pipeline on the files of `--bench loader`: torchvision_loader.py DIR WORKERS

DIR is a folder that the example synthetic_folder of dr-train wrote. Prints JSON; the first epoch does not count.
"""

import json
import statistics
import sys
import time

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

directory, workers = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
normalize = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
pipelines = {
    "training": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalize],
    "evaluation": [transforms.Resize(256), transforms.CenterCrop(224), *normalize],
}
result = {"torch": torch.__version__, "workers": workers}
for name, pipeline in pipelines.items():
    data = ImageFolder(f"{directory}/train", transforms.Compose(pipeline))
    loader = DataLoader(data, 64, shuffle=name == "training", num_workers=workers, persistent_workers=workers > 0)
    rates = []
    for _ in range(4):
        start = time.perf_counter()
        images = sum(len(labels) for _, labels in loader)
        rates.append(images / (time.perf_counter() - start))
    result[name] = round(statistics.median(rates[1:]), 1)
print(json.dumps(result))
