"""The matrix products of one layer of BERT, over and over: peak.py HIDDEN ROWS THREADS."""
import json
import sys
import time

import torch

SECONDS, ROUNDS = 1.0, 5

hidden, rows, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(7)
narrow, wide = torch.rand(rows, hidden), torch.rand(rows, 4 * hidden)
square, up, down = torch.rand(hidden, hidden), torch.rand(4 * hidden, hidden), torch.rand(hidden, 4 * hidden)


def layer():
    for _ in range(4):
        torch.nn.functional.linear(narrow, square)
    torch.nn.functional.linear(narrow, up)
    torch.nn.functional.linear(wide, down)


best = 0.0
with torch.inference_mode():
    layer()
    for _ in range(ROUNDS):
        layers, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            layer()
            layers += 1
        seconds = time.perf_counter() - started
        best = max(best, layers * 2 * 12 * hidden * hidden * rows / seconds / 1e9)
print(json.dumps({"gflop_per_second": best}))
