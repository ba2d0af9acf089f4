//! What the checks of `config.json` promise.
use serde_json::Map;

use super::*;

fn bert(change: impl FnOnce(&mut Map<String, Value>)) -> Result<ModelConfig, ConfigError> {
    let mut value = serde_json::json!({
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
        "max_position_embeddings": 40,
    });
    change(value.as_object_mut().expect("an object"));
    ModelConfig::parse(value.to_string().as_bytes())
}

fn check_refused(change: impl FnOnce(&mut Map<String, Value>), message: &str) {
    let error = bert(change).expect_err(message);
    assert_eq!(error.to_string(), message);
}

#[test]
fn a_plain_config_gets_the_familys_defaults() {
    let config = bert(|_| {}).expect("valid");
    assert_eq!(config.architecture, Architecture::Bert);
    assert_eq!((config.tokens_max(), config.head_size()), (40, 8));
    assert_eq!(config.labels, ["LABEL_0", "LABEL_1"]);
    assert_eq!(config.activation, HiddenActivation::GeluErf);
}

#[test]
fn roberta_loses_the_positions_before_the_padding_id() {
    let config = bert(|c| drop(c.insert("model_type".into(), "roberta".into())));
    assert_eq!(config.expect("valid").tokens_max(), 38);
}

#[test]
fn an_error_names_the_field() {
    check_refused(
        |c| drop(c.remove("hidden_size")),
        r#"config.json has no field "hidden_size""#,
    );
    check_refused(
        |c| drop(c.insert("num_hidden_layers".into(), (-1).into())),
        r#"config.json: "num_hidden_layers" is -1, outside 1 to 256"#,
    );
    check_refused(
        |c| drop(c.insert("vocab_size".into(), "many".into())),
        r#"config.json: "vocab_size" must be a whole number"#,
    );
    check_refused(
        |c| drop(c.insert("num_attention_heads".into(), 5.into())),
        "config.json: 5 attention heads do not divide hidden size 32",
    );
    check_refused(
        |c| drop(c.insert("is_decoder".into(), true.into())),
        r#"config.json: "is_decoder" is "true", which is not supported; supported: false"#,
    );
}

#[test]
fn labels_come_in_the_order_of_the_logits() {
    let named = |labels: Value| bert(|c| drop(c.insert("id2label".into(), labels)));
    let config = named(
        serde_json::json!({"10": "k", "0": "a", "1": "b", "2": "c", "3": "d",
        "4": "e", "5": "f", "6": "g", "7": "h", "8": "i", "9": "j"}),
    );
    assert_eq!(config.expect("valid").labels.concat(), "abcdefghijk");
    for labels in [
        serde_json::json!({"0": "a", "2": "b"}),
        serde_json::json!({"1": "a", "01": "b"}),
        serde_json::json!({"x": "a"}),
    ] {
        let error = named(labels).expect_err("the keys are not 0, 1, …");
        assert!(matches!(error, ConfigError::LabelKey { .. }));
    }
}

#[test]
fn no_bytes_make_the_parser_panic() {
    proptest::proptest!(|(bytes: Vec<u8>)| { let _ = ModelConfig::parse(&bytes); });
    let deep = format!("{{\"model_type\":{}", "[".repeat(250_000));
    assert!(matches!(
        ModelConfig::parse(deep.as_bytes()),
        Err(ConfigError::NotJson(_))
    ));
}
