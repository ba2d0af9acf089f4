//! The form of an amount of money in a manifest: a decimal number in a string, since a number of
//! YAML or JSON is a binary fraction to most who read it.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Up to a million, with six decimals at most, so that the price of one token of a million is exact.
pub fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 13,
        "pattern": r"^[0-9]{1,6}([.][0-9]{1,6})?$",
    })
}
