#!/usr/bin/env python3
"""Grows the trained classifiers to the size of MiniLM or BERT-base: `cargo xtask models` calls it.

A grown model gives the answers of the one that was trained, and costs what any model of its size
costs. Each dimension, each unit between and each head stands in it several times, with weights
divided by how often, so that every sum stays what it was; the layers beyond those that were trained
pass through what they get, since their maps are zero. Each model is compared with the one that it
was grown from before it is written.
"""

import argparse
import pathlib
import shutil

import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

# Where the examples look for each classifier.
PLACES = {
    "sentiment": ["analysis/models/sentiment", "sentiment-to-postgres/models/sentiment"],
    "toxicity": ["analysis/models/toxicity"],
    "emotion": ["sentiment-to-postgres/models/emotion"],
    "symptoms": ["symptoms/models/symptoms"],
}
# How far logits may be apart that are sums of the same numbers in another order.
TOLERANCE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=PLACES, metavar="NAME", help=", ".join(PLACES))
    parser.add_argument("--trained", type=pathlib.Path, required=True, help="what train.py wrote")
    parser.add_argument("--to", type=pathlib.Path, required=True, help="the folder of the examples")
    parser.add_argument("--layers", type=int, default=6, help="6, as MiniLM has; BERT-base has 12")
    parser.add_argument("--hidden", type=int, default=384, help="384, as MiniLM has; BERT-base has 768")
    options = parser.parse_args()
    logging.disable_progress_bar()
    for name in options.names:
        trained = BertForSequenceClassification.from_pretrained(options.trained / name).eval()
        grown = grow(trained, options.layers, options.hidden)
        compare(trained, grown)
        for place in PLACES[name]:
            folder = options.to / place
            grown.save_pretrained(folder)
            for file in ["tokenizer.json", "tokenizer_config.json"]:
                shutil.copyfile(options.trained / name / file, folder / file)
            print(folder)


def grow(trained, layers, hidden):
    old = trained.config
    heads = hidden // (64 if hidden >= 768 else 32)
    if layers < old.num_hidden_layers or hidden % old.hidden_size or heads % old.num_attention_heads:
        raise SystemExit(f"--layers must be at least {old.num_hidden_layers},"
                         f" --hidden a multiple of {old.hidden_size}")
    grown = BertForSequenceClassification(BertConfig(**{
        **old.to_dict(), "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "intermediate_size": 4 * hidden})).eval()
    times = hidden // old.hidden_size
    of_hidden = torch.arange(hidden) % old.hidden_size
    of_inner = torch.arange(4 * hidden) % old.intermediate_size
    of_heads, in_head = heads_of(old, heads, hidden // heads)
    weights = trained.state_dict()
    made = {}

    def linear(name, rows, columns=of_hidden, scale=1.0):
        made[f"{name}.weight"] = scale / times * weights[f"{name}.weight"][rows][:, columns]
        made[f"{name}.bias"] = scale * weights[f"{name}.bias"][rows]

    def norm(name):
        made[f"{name}.weight"], made[f"{name}.bias"] = (weights[f"{name}.{it}"][of_hidden] for it in ["weight", "bias"])

    for table in ["word", "position", "token_type"]:
        name = f"bert.embeddings.{table}_embeddings.weight"
        made[name] = weights[name][:, of_hidden]
    norm("bert.embeddings.LayerNorm")
    for layer in range(old.num_hidden_layers):
        prefix = f"bert.encoder.layer.{layer}"
        # A product over `in_head` times as many dimensions, divided by the root of as many.
        linear(f"{prefix}.attention.self.query", of_heads, scale=in_head ** -0.5)
        linear(f"{prefix}.attention.self.key", of_heads)
        linear(f"{prefix}.attention.self.value", of_heads)
        linear(f"{prefix}.attention.output.dense", of_hidden, of_heads)
        linear(f"{prefix}.intermediate.dense", of_inner)
        linear(f"{prefix}.output.dense", of_hidden, of_inner)
        norm(f"{prefix}.attention.output.LayerNorm")
        norm(f"{prefix}.output.LayerNorm")
    linear("bert.pooler.dense", of_hidden)
    made["classifier.weight"] = weights["classifier.weight"][:, of_hidden] / times
    made["classifier.bias"] = weights["classifier.bias"]
    for name, zeros in grown.state_dict().items():
        made.setdefault(name, torch.ones_like(zeros) if name.endswith("LayerNorm.weight") else torch.zeros_like(zeros))
    if layers > old.num_hidden_layers:
        fold(made, f"bert.encoder.layer.{old.num_hidden_layers - 1}.output.LayerNorm")
    grown.load_state_dict(made)
    return grown


def heads_of(old, heads, dimensions):
    """The old dimension of each new one between heads, and how often each stands within its head."""
    old_dimensions = old.hidden_size // old.num_attention_heads
    place = torch.arange(heads * dimensions)
    head, within = place // dimensions % old.num_attention_heads, place % dimensions % old_dimensions
    return head * old_dimensions + within, dimensions // old_dimensions


def fold(made, norm):
    """Moves the last trained scale and shift into the pooler: what they leave is passed through unchanged,
    since normalising it again changes nothing."""
    scale, shift = made[f"{norm}.weight"], made[f"{norm}.bias"]
    made["bert.pooler.dense.bias"] = made["bert.pooler.dense.bias"] + made["bert.pooler.dense.weight"] @ shift
    made["bert.pooler.dense.weight"] = made["bert.pooler.dense.weight"] * scale
    made[f"{norm}.weight"], made[f"{norm}.bias"] = torch.ones_like(scale), torch.zeros_like(shift)


def compare(trained, grown):
    torch.manual_seed(7)
    ids = torch.randint(0, trained.config.vocab_size, (8, 24))
    mask = torch.ones_like(ids)
    mask[::2, 12:] = 0
    with torch.no_grad():
        apart = (trained(ids, mask).logits - grown(ids, mask).logits).abs().max().item()
    if apart > TOLERANCE:
        raise SystemExit(f"the grown model answers otherwise: logits are {apart} apart")


if __name__ == "__main__":
    main()
