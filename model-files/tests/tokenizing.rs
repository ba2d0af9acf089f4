//! Holds our bounded tokenising against the tokenizers library run on the whole text.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use millrace_model_files::folder::default_model_cache;
use millrace_model_files::tokenizer::{Encoding, TextLimits, TextTokenizer, TokenizerError};
use millrace_protocol::row::RowErrorCode;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::{Tokenizer, TruncationParams};

const LIMITS: TextLimits = TextLimits {
    text_chars_max: 1_000_000,
    tokenize_deadline: Duration::from_secs(600),
};

/// One tokenizer, ours and the library's, cut to the same length.
struct Pair {
    ours: TextTokenizer,
    library: Tokenizer,
}

impl Pair {
    fn open(path: &Path, max_length: usize) -> Self {
        let ours = TextTokenizer::load(path, max_length, true, LIMITS).unwrap();
        let mut library = Tokenizer::from_file(path).unwrap();
        library.with_padding(None);
        let truncation = TruncationParams {
            max_length,
            ..Default::default()
        };
        library.with_truncation(Some(truncation)).unwrap();
        Self { ours, library }
    }

    fn built(json: &Value, max_length: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::open(&write(folder.path(), json), max_length)
    }

    /// What the library says of the whole text; an error where it has no tokens.
    fn whole(&self, text: &str) -> Result<Encoding, RowErrorCode> {
        let encoded = self.library.encode_char_offsets(text, true).unwrap();
        let special = encoded.get_special_tokens_mask();
        if special.iter().all(|&special| special == 1) {
            return Err(RowErrorCode::EmptyText);
        }
        let spans = encoded.get_offsets().iter().zip(special);
        let spans = spans
            .map(|(&(start, end), &special)| (special == 0).then_some((start as u32, end as u32)));
        Ok(Encoding {
            token_ids: encoded.get_ids().to_vec(),
            char_spans: spans.collect(),
            truncated: !encoded.get_overflowing().is_empty(),
        })
    }

    fn bounded(&self, text: &str) -> Result<Encoding, RowErrorCode> {
        self.ours.encode(text).map_err(|error| error.code)
    }
}

fn write(folder: &Path, json: &Value) -> PathBuf {
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    path
}

/// Where `cargo xtask setup` puts all-MiniLM-L6-v2.
fn minilm() -> PathBuf {
    let path = default_model_cache().join("sentence-transformers/all-MiniLM-L6-v2/tokenizer.json");
    assert!(
        path.is_file(),
        "{} is missing; `cargo xtask setup` puts it there, and MILLRACE_MODEL_CACHE names another \
         model cache",
        path.display()
    );
    path
}

/// Word pieces of one sentence-piece model, as XLM-RoBERTa has them.
fn unigram() -> Value {
    let pieces = [
        "▁", "▁mi", "mi", "ll", "l", "i", "m", "ra", "ce", "x", "xx", "xxx", "中", "é", ".",
    ];
    let mut vocab = vec![json!(["<unk>", 0.0])];
    vocab.extend(
        pieces
            .iter()
            .zip(1..)
            .map(|(piece, rank)| json!([piece, -f64::from(rank)])),
    );
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    })
}

/// Bytes and a few merges, as RoBERTa has them; white space is part of tokens.
fn byte_level() -> Value {
    let bytes = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut tokens: Vec<String> = bytes.into_iter().map(String::from).collect();
    tokens.sort();
    let merges = [
        ("m", "i"),
        ("l", "l"),
        ("mi", "ll"),
        ("Ġ", "mill"),
        ("Ġ", "Ġ"),
        ("x", "x"),
        ("xx", "xx"),
    ];
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: serde_json::Map<_, _> = tokens
        .into_iter()
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges.map(|(l, r)| format!("{l} {r}")),
                  "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false},
    })
}

fn check_same(pair: &Pair, text: &str) {
    assert_eq!(pair.bounded(text), pair.whole(text), "{text:?}");
}

/// Texts long enough to be cut: words, overlong words, scripts without spaces, odd characters.
fn texts() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        8 => "(mill|race|Millrace|é|e\u{301}|don't|3\\.14)",
        // Ends on another letter: runs must not join to one that reaches past half a beginning.
        2 => "x{80,150}q",
        2 => "[\u{4e00}-\u{4e20}。]{1,200}",
        1 => "[.!?,;-]{1,80}",
        1 => "[\u{0}\u{feff}\u{200b}\u{ad}]{1,3}",
        1 => "[a-z]{1,12}",
    ];
    let gap = prop_oneof![8 => Just(" ".to_owned()), 1 => "[ \n\t\r\u{a0}\u{3000}]{1,300}", 1 => Just(String::new())];
    proptest::collection::vec((word, gap), 0..250)
        .prop_map(|pairs| pairs.into_iter().map(|(word, gap)| word + &gap).collect())
}

static MINILM: LazyLock<[Pair; 2]> =
    LazyLock::new(|| [Pair::open(&minilm(), 8), Pair::open(&minilm(), 256)]);
static UNIGRAM: LazyLock<[Pair; 2]> =
    LazyLock::new(|| [Pair::built(&unigram(), 4), Pair::built(&unigram(), 100)]);
static BYTE_LEVEL: LazyLock<[Pair; 2]> = LazyLock::new(|| {
    [
        Pair::built(&byte_level(), 4),
        Pair::built(&byte_level(), 100),
    ]
});

proptest! {
    #[test]
    fn minilm_tokenises_a_text_by_its_beginning_as_by_the_whole(text in texts()) {
        MINILM.iter().for_each(|pair| check_same(pair, &text));
    }

    #[test]
    fn sentence_pieces_come_of_the_beginning_as_of_the_whole(text in texts()) {
        UNIGRAM.iter().for_each(|pair| check_same(pair, &text));
    }

    #[test]
    fn byte_pairs_come_of_the_beginning_as_of_the_whole(text in texts()) {
        BYTE_LEVEL.iter().for_each(|pair| check_same(pair, &text));
    }
}

#[test]
fn minilm_pads_nothing_and_cuts_at_our_length_though_its_file_says_128() {
    let pair = Pair::open(&minilm(), 256);
    assert_eq!(
        pair.ours.encode("Hello, world!").unwrap().token_ids,
        [101, 7592, 1010, 2088, 999, 102]
    );
    let long = pair.ours.encode(&"mill ".repeat(300)).unwrap();
    assert_eq!((long.token_ids.len(), long.truncated), (256, true));
    assert_eq!(pair.ours.vocabulary_size(), 30_522);
}

#[test]
fn a_word_too_long_for_the_vocabulary_stays_unknown_where_the_text_is_cut() {
    // The first pass ends at 1,024 characters, within the last word, and what it leaves of that word
    // is short enough to be spelled out, in more tokens than the model takes.
    let pair = Pair::open(&minilm(), 8);
    for lead in [930, 960, 990] {
        check_same(&pair, &format!("{}.{}", "x".repeat(lead), "ab".repeat(200)));
    }
}

#[test]
fn pathological_texts_are_tokenised_like_others() {
    let pair = Pair::open(&minilm(), 256);
    for text in [
        "x",
        ".",
        "中",
        "e\u{301}",
        "\u{301}",
        "\u{0}",
        "\u{feff}",
        " ",
        "\u{1f600}",
        "[SEP]",
    ] {
        check_same(&pair, &text.repeat(20_000 / text.len()));
    }
}

#[test]
fn nul_and_byte_order_marks_are_no_trouble() {
    let pair = Pair::open(&minilm(), 16);
    let plain = pair.ours.encode("mill race").unwrap().token_ids;
    for text in ["\u{feff}mill race", "mill\u{0} race", "mill race\u{0}"] {
        assert_eq!(pair.ours.encode(text).unwrap().token_ids, plain, "{text:?}");
    }
    assert_eq!(pair.bounded("\u{0}\u{feff}"), Err(RowErrorCode::EmptyText));
}

#[test]
fn the_vocabulary_reaches_to_the_highest_id() {
    let json = json!({
        "version": "1.0", "added_tokens": [], "model":
        {"type": "WordLevel", "vocab": {"[UNK]": 0, "mill": 7}, "unk_token": "[UNK]"},
    });
    assert_eq!(Pair::built(&json, 8).ours.vocabulary_size(), 8);
}

fn refused(json: &Value, max_length: usize) -> TokenizerError {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), json);
    TextTokenizer::load(&path, max_length, false, LIMITS)
        .map(|_| ())
        .unwrap_err()
}

#[test]
fn what_is_no_tokenizer_is_refused_by_name() {
    let error = refused(&json!({}), 8).to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_length_without_room_for_text_is_refused() {
    let path = minilm();
    let error = TextTokenizer::load(&path, 2, false, LIMITS)
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            TokenizerError::NoRoom {
                max_length: 2,
                special: 2
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_whose_own_length_has_no_room_for_special_tokens_still_loads() {
    let mut json: Value = serde_json::from_slice(&std::fs::read(minilm()).unwrap()).unwrap();
    json["truncation"]["max_length"] = json!(1);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &json);
    let tokenizer = TextTokenizer::load(&path, 16, false, LIMITS).unwrap();
    assert_eq!(tokenizer.encode("mill race").unwrap().token_ids.len(), 4);
}

#[test]
fn tokenizers_are_the_same_where_file_and_length_are_and_spans_change_no_token() {
    let load = |path: &std::path::Path, max_length, with_spans| {
        TextTokenizer::load(path, max_length, with_spans, LIMITS).unwrap()
    };
    let (plain, spans) = (load(&minilm(), 16, false), load(&minilm(), 16, true));
    assert_eq!(plain.fingerprint(), spans.fingerprint());
    let text = "The mill's race turned: 17 wheels, unbelievably fast and for a very long time.";
    let (of_plain, of_spans) = (plain.encode(text).unwrap(), spans.encode(text).unwrap());
    assert_eq!(of_plain.token_ids, of_spans.token_ids);
    assert!(plain.fingerprint() != load(&minilm(), 17, false).fingerprint());
    let mut json: Value = serde_json::from_slice(&std::fs::read(minilm()).unwrap()).unwrap();
    json["normalizer"]["lowercase"] = json!(false);
    let folder = tempfile::tempdir().unwrap();
    let other = load(&write(folder.path(), &json), 16, false);
    assert!(plain.fingerprint() != other.fingerprint());
}
