"""Your own images in under ten lines: a small study of forgetting, with its tables and figures."""

import numpy as np

import clbench
from clbench.reports import write_report
from clbench.scenarios import dataset_from_arrays, split

rng = np.random.default_rng(0)
labels = np.arange(4).repeat(100)
images = (labels[:, None, None] * 50 + rng.integers(0, 50, (400, 8, 8))).astype(np.uint8)  # stands for your images

data = dataset_from_arrays(images[::2], labels[::2], images[1::2], labels[1::2], name="stripes")
scenario = split(data, tasks=2)
options = dict(model="mlp:32", epochs=5, batch_size=16, optimizer="adam", lr=0.01)
results = clbench.compare(scenario, ["naive", "er", "lwf"], seeds=2, **options)
print(results)
write_report(results, "runs/report")
