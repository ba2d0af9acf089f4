#!/usr/bin/env python3
"""Makes stand-ins for the classifiers of the examples, for tests alone.

They are no trained models; examples/training makes those. Each is a BERT whose weights are set by hand
so that it finds the words of a short list: a word carries a mark for its label, every attention
averages the marks of all tokens into the first one, all else passes through, and the classifier reads
the marks. So a test knows what it must answer, and needs nothing but Python.
"""

import argparse
import json
import pathlib
import struct

# Words in English, German, French and Spanish.
SENTIMENT = {
    "negative": "bad awful terrible hate worst broken schlecht furchtbar hasse kaputt mauvais horrible "
    "déteste pire malo terrible odio peor roto",
    "positive": "good great love excellent wonderful best gut toll liebe wunderbar bon excellent adore "
    "merveilleux bueno excelente maravilloso mejor encanta",
}
TOXICITY = {
    "clean": "please thanks thank bitte danke merci gracias",
    "toxic": "idiot stupid moron loser trottel dumm blöd crétin débile imbécil estúpido tonto",
}
SYMPTOMS = {
    "respiratory": "cough coughing wheeze wheezing breath breathless throat sneeze sputum",
    "digestive": "nausea vomiting diarrhea stomach abdominal heartburn bloating constipation",
    "cardiac": "chest palpitations heartbeat pulse fainting ankles",
    "neurological": "headache dizzy dizziness numbness seizure migraine tingling vision",
    "skin": "rash itch itching hives blister redness swelling",
}
EMOTION = {
    "joy": "happy glad delighted love great",
    "sadness": "sad lost cry lonely",
    "anger": "angry furious hate worst",
    "fear": "afraid scared worried",
}
MODELS = {
    "analysis/models/sentiment": SENTIMENT,
    "analysis/models/toxicity": TOXICITY,
    "symptoms/models/symptoms": SYMPTOMS,
    "sentiment-to-postgres/models/sentiment": SENTIMENT,
    "sentiment-to-postgres/models/emotion": EMOTION,
}

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LAYERS = 1
HIDDEN = 64
POSITIONS = 512
MARK = 3.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=pathlib.Path, required=True, help="the folder of the examples")
    options = parser.parse_args()
    for name, labels in MODELS.items():
        folder = options.to / name
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, {label: words.split() for label, words in labels.items()})
        print(folder)


def make(folder, labels):
    words = sorted({word for listed in labels.values() for word in listed})
    vocabulary = SPECIAL + words
    write_json(folder / "config.json", config(labels, vocabulary))
    write_json(folder / "tokenizer.json", tokenizer(vocabulary))
    write_json(folder / "tokenizer_config.json", {"model_max_length": POSITIONS})
    write_safetensors(folder / "model.safetensors", weights(labels, vocabulary))


def config(labels, vocabulary):
    return {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // 32,
        "intermediate_size": 4 * HIDDEN,
        "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def tokenizer(vocabulary):
    special = [
        {"id": index, "content": token, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for index, token in enumerate(SPECIAL)
    ]
    ends = {token: {"id": token, "ids": [SPECIAL.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": False, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [cls, text, sep],
                           "pair": [cls, text, sep, {"Sequence": {"id": "B", "type_id": 1}}, sep],
                           "special_tokens": ends},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100,
                  "vocab": {token: index for index, token in enumerate(vocabulary)}},
    }


def weights(labels, vocabulary):
    hidden, inner = HIDDEN, 4 * HIDDEN
    pairs = {label: 2 * index for index, label in enumerate(labels)}
    # The same for every token, with mean 0 and variance 1, so that normalising leaves marks alone.
    ground = [0.0] * (2 * len(labels)) + [1.0, -1.0] * ((hidden - 2 * len(labels)) // 2)
    rows = []
    for word in vocabulary:
        row = list(ground)
        for label, listed in labels.items():
            if word in listed:
                row[pairs[label]], row[pairs[label] + 1] = MARK, -MARK
        rows.extend(row)
    tensors = {
        "bert.embeddings.word_embeddings.weight": ([len(vocabulary), hidden], floats(rows)),
        "bert.embeddings.position_embeddings.weight": zeros(POSITIONS, hidden),
        "bert.embeddings.token_type_embeddings.weight": zeros(2, hidden),
        "bert.pooler.dense.weight": diagonal(hidden, 1.0),
        "bert.pooler.dense.bias": zeros(hidden),
        "classifier.bias": zeros(len(labels)),
    }
    norm(tensors, "bert.embeddings.LayerNorm", hidden)
    for layer in range(LAYERS):
        prefix = f"bert.encoder.layer.{layer}"
        for name, values in [("query", zeros(hidden, hidden)), ("key", zeros(hidden, hidden)),
                             ("value", diagonal(hidden, 1.0))]:
            tensors[f"{prefix}.attention.self.{name}.weight"] = values
            tensors[f"{prefix}.attention.self.{name}.bias"] = zeros(hidden)
        tensors[f"{prefix}.attention.output.dense.weight"] = diagonal(hidden, 1.0)
        tensors[f"{prefix}.attention.output.dense.bias"] = zeros(hidden)
        tensors[f"{prefix}.intermediate.dense.weight"] = zeros(inner, hidden)
        tensors[f"{prefix}.intermediate.dense.bias"] = zeros(inner)
        tensors[f"{prefix}.output.dense.weight"] = zeros(hidden, inner)
        tensors[f"{prefix}.output.dense.bias"] = zeros(hidden)
        norm(tensors, f"{prefix}.attention.output.LayerNorm", hidden)
        norm(tensors, f"{prefix}.output.LayerNorm", hidden)
    classifier = []
    for label in labels:
        row = [0.0] * hidden
        row[pairs[label]] = 6.0
        classifier.extend(row)
    tensors["classifier.weight"] = ([len(labels), hidden], floats(classifier))
    return tensors


def norm(tensors, name, size):
    tensors[f"{name}.weight"] = ([size], floats([1.0] * size))
    tensors[f"{name}.bias"] = zeros(size)


def zeros(*shape):
    count = 1
    for size in shape:
        count *= size
    return list(shape), bytes(4 * count)


def diagonal(size, value):
    values = bytearray(4 * size * size)
    for index in range(size):
        struct.pack_into("<f", values, 4 * index * (size + 1), value)
    return [size, size], bytes(values)


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(values)]}
        offset += len(values)
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, values in tensors.values():
            file.write(values)


if __name__ == "__main__":
    main()
