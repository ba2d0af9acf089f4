"""Writes the reference models and outputs that parity.rs compares against.

    pip install -r requirements.txt
    python generate.py [path of all-MiniLM-L6-v2]

Small models with random weights, one per family and task, are saved in Hugging Face layout; their
outputs are computed by `transformers` in float64, one sequence at a time, so that neither padding
nor rounding of the reference matters. For all-MiniLM-L6-v2 only the vectors of a few sentences are
kept, as `sentence-transformers` computes them in float32.
"""

import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
VOCAB = 120
POSITIONS = 150
# Lengths on both sides of each branch: equal ones, neighbours that share a padded group, a single
# token, and sequences long enough for the fused attention and for MPNet's last bucket.
LENGTHS = [7, 50, 1, 12, 7, 131, 3, 48, 13, 61, 7, 50, 47]

SHAPE = dict(vocab_size=VOCAB, max_position_embeddings=POSITIONS)
BERT = dict(SHAPE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
DISTIL = dict(SHAPE, dim=32, n_layers=2, n_heads=4, hidden_dim=64)

# Family, its configuration class, its settings, and its prefix in the transformers library.
FAMILIES = {
    "bert": (transformers.BertConfig, dict(BERT, hidden_act="gelu"), "Bert"),
    "roberta": (transformers.RobertaConfig, dict(BERT, hidden_act="gelu_new", type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5), "Roberta"),
    "xlm-roberta": (transformers.XLMRobertaConfig, dict(BERT, hidden_act="gelu", type_vocab_size=2, pad_token_id=3, layer_norm_eps=1e-5), "XLMRoberta"),
    "distilbert": (transformers.DistilBertConfig, dict(DISTIL, activation="relu"), "DistilBert"),
    "mpnet": (transformers.MPNetConfig, dict(BERT, hidden_act="silu", layer_norm_eps=1e-5), "MPNet"),
}
TASKS = {
    "embedding": "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
}

SENTENCES = [
    "A cat sat on the mat.",
    "The quick brown fox jumps over the lazy dog.",
    "Rust",
    "Batch inference reads every row once and writes every result once.",
    "How do I reset my password if I no longer have access to my e-mail address?",
    "The library was closed, so we walked along the river until the rain began.",
    "Tensor cores multiply small matrices; the compiler has to feed them.",
    "Größe, façade, naïve, coöperate, smörgåsbord.",
    "你好，世界",
    "The meeting is on 2024-03-01 at 10:45, room B-113.",
    "!!! ??? ...",
    "She sells sea shells by the sea shore, and the shells she sells are surely sea shells.",
    "An operator observes the state of the cluster, compares it with what was asked for, and acts on the difference.",
    "Deep in the forest there stood an old mill whose wheel had not turned for forty years, and whose owner, "
    "a widow of great age, would tell anyone who asked that the river had simply forgotten the way. Nobody "
    "believed her until the spring of the great flood, when the water came back in a single night.",
    "Leases expire. " * 30,
    "A library of common routines for parsing, validating and printing structured documents. It reads a "
    "document in one pass without keeping it in memory, reports the line and column of the first error, and "
    "writes the same bytes that it read unless the caller changes them. " * 6,
]


def randomise(model, seed):
    """Weights large enough that attention is far from uniform and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = "layernorm" in name.lower() or "layer_norm" in name
        if is_norm and name.endswith("weight"):
            parameter.data = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            parameter.data = 0.2 * noise
        elif "embedding" in name or "relative_attention_bias" in name:
            parameter.data = noise
        else:
            parameter.data = 0.25 * noise


def sequences(padding):
    """Token ids without padding, except one in the middle of a text, as a user may type it."""
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(4, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    rows[3][5] = padding
    return rows


def rounded(tensor):
    return [[float(f"{number:.8g}") for number in row] for row in tensor.tolist()]


def expected(model, task, rows):
    outputs = {"sequences": rows}
    kept = {"mean": [], "cls": [], "logits": []}
    with torch.no_grad():
        for row in rows:
            output = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row)))
            if task == "embedding":
                kept["mean"].append(output.last_hidden_state[0].mean(0))
                kept["cls"].append(output.last_hidden_state[0, 0])
            else:
                kept["logits"].append(output.logits[0])
    for name, tensors in kept.items():
        if tensors and tensors[0].dim() == 1:
            outputs[name] = rounded(torch.stack(tensors))
        elif tensors:
            outputs[name] = rounded(torch.cat(tensors))
    return outputs


def write(folder, model, task, rows):
    """Saves the model and the outputs of exactly what was saved."""
    shutil.rmtree(folder, ignore_errors=True)
    model.float().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    outputs = expected(model.double().eval(), task, rows)
    (folder / "expected.json").write_text(json.dumps(outputs, separators=(",", ":")) + "\n")


def store_as(folder, dtype):
    path = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def families():
    for number, (family, (config_class, settings, prefix)) in enumerate(FAMILIES.items()):
        for task, suffix in TASKS.items():
            config = config_class(
                **settings,
                id2label=dict(enumerate(LABELS)),
                label2id={label: index for index, label in enumerate(LABELS)},
                attn_implementation="eager",
            )
            model = getattr(transformers, prefix + suffix)(config)
            randomise(model, seed=number)
            storage = {"xlm-roberta": torch.bfloat16, "mpnet": torch.float16}.get(family)
            if storage is not None and task == "embedding":
                # The stored weights are the model: round first, then compute.
                model.to(storage).float()
            padding = {"bert": 0, "distilbert": 0, "xlm-roberta": 3}.get(family, 1)
            folder = HERE / f"{family}-{task}"
            write(folder, model, task, sequences(padding))
            if storage is not None and task == "embedding":
                store_as(folder, storage)


class Scripted(torch.nn.Module):
    """Counts what the mask lets through, so that a wrong mask or padding shows."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(VOCAB, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen = attention_mask.unsqueeze(-1).to(torch.float32)
        return (self.words(input_ids) * seen).sum(1) / seen.sum(1)


def torchscript():
    folder = HERE / "torchscript"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    module = Scripted().eval()
    randomise(module, seed=99)
    torch.jit.save(torch.jit.script(module), folder / "model.pt")
    rows = sequences(0)
    with torch.no_grad():
        logits = [module(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0] for row in rows]
    config = {"model_type": "torchscript", "vocab_size": VOCAB, "max_position_embeddings": POSITIONS}
    config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    outputs = {"sequences": rows, "logits": rounded(torch.stack(logits))}
    (folder / "expected.json").write_text(json.dumps(outputs, separators=(",", ":")) + "\n")


def minilm(path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    model.max_seq_length = 256
    vectors = model.encode(SENTENCES, normalize_embeddings=True)
    # Truncation and special tokens as `tokenizer.json` is used by the product.
    ids = model.tokenizer(SENTENCES, truncation=True, max_length=256)["input_ids"]
    outputs = {
        "sentences": SENTENCES,
        "sequences": ids,
        "vectors": [[float(f"{number:.7g}") for number in row] for row in vectors.tolist()],
    }
    (HERE / "minilm.json").write_text(json.dumps(outputs, separators=(",", ":"), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    default = pathlib.Path.home() / ".cache/millrace/models/sentence-transformers/all-MiniLM-L6-v2"
    families()
    torchscript()
    minilm(sys.argv[1] if len(sys.argv) > 1 else default)
