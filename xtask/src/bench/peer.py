"""Embeds texts with sentence-transformers as it comes: peer.py MODEL TEXTS.jsonl THREADS."""
import json
import sys
import time

import torch
from sentence_transformers import SentenceTransformer

model, file, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
with open(file, encoding="utf-8") as lines:
    texts = [json.loads(line)["text"] for line in lines]
model = SentenceTransformer(model, device="cpu")
model.max_seq_length = 256
model.encode(texts[:64])
started = time.perf_counter()
model.encode(texts)
print(json.dumps({"texts": len(texts), "seconds": time.perf_counter() - started}))
