//! Which rows are worked off first. Pure.
//!
//! Each expression of an order makes a class of the rows that it is the first to be true for, and all
//! others are the last class: every row is in exactly one, whatever stands in it.

use std::sync::Arc;

use millrace_protocol::row::ReadRow;

use crate::expression::Expression;
use crate::job::Fields;

/// The order of a job's rows; cheap to clone.
#[derive(Debug, Clone)]
pub struct Order(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    /// As the job has them.
    written: Vec<String>,
    expressions: Vec<Expression>,
}

/// Why an order cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("input.order[{index}]: {message}")]
pub struct BadOrder {
    /// Index of the expression.
    pub index: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl Order {
    /// The fields that its expressions name.
    pub fn fields(&self) -> Vec<String> {
        let named = self.0.expressions.iter().flat_map(Expression::fields);
        named.cloned().collect()
    }

    /// The order by these expressions; `None` where there are none.
    pub fn new(expressions: &[String]) -> Result<Option<Self>, BadOrder> {
        if expressions.is_empty() {
            return Ok(None);
        }
        let written = expressions.to_vec();
        let expressions = expressions.iter().enumerate().map(|(index, expression)| {
            Expression::new(expression).map_err(|message| BadOrder { index, message })
        });
        Ok(Some(Self(Arc::new(Rules {
            written,
            expressions: expressions.collect::<Result<_, _>>()?,
        }))))
    }

    /// The expressions, as the job has them.
    pub fn expressions(&self) -> &[String] {
        &self.0.written
    }

    /// How many classes there are: one more than expressions.
    pub fn classes(&self) -> u8 {
        self.last() + 1
    }

    /// The class of a row with these fields, a JSON object of those that the expressions name. One of
    /// which an expression cannot be told is in the last class.
    pub fn class(&self, fields: Option<&str>) -> u8 {
        let fields = fields.unwrap_or("{}");
        for (expression, class) in self.0.expressions.iter().zip(0..) {
            match expression.is_true_for(fields) {
                Ok(true) => return class,
                Ok(false) => {}
                Err(_) => break,
            }
        }
        self.last()
    }

    /// Those of `rows` that are in a class; what cannot be read is in the last one. Computes away from
    /// the runtime's threads.
    pub async fn only(&self, class: u8, mut rows: Vec<ReadRow>) -> Vec<ReadRow> {
        let order = self.clone();
        let selecting = move || {
            rows.retain(|row| order.class_of(row) == class);
            rows
        };
        let selected = tokio::task::spawn_blocking(selecting).await;
        selected.expect("an order does not panic")
    }

    fn class_of(&self, row: &ReadRow) -> u8 {
        match row {
            ReadRow::Row(row) => self.class(row.filtered.as_ref().map(|fields| fields.get())),
            ReadRow::Bad { .. } => self.last(),
        }
    }

    fn last(&self) -> u8 {
        u8::try_from(self.0.expressions.len()).expect("the schema allows few")
    }
}

/// The fields of a job's rows together with those that its order names.
pub fn fields(order: Option<&Order>, fields: &Fields) -> Fields {
    let mut fields = fields.clone();
    let expressions = order.map_or(&[][..], |order| &order.0.expressions);
    let named = expressions.iter().flat_map(Expression::fields);
    fields.filtered.extend(named.cloned());
    fields
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn order(expressions: &[&str]) -> Result<Option<Order>, BadOrder> {
        Order::new(
            &expressions
                .iter()
                .map(|it| (*it).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn every_row_is_in_the_class_of_the_first_expression_that_is_true_or_in_the_last() {
        let order = order(&["tier == 'gold'", "stars|int > 3"])
            .unwrap()
            .unwrap();
        assert_eq!(order.classes(), 3);
        let check = |fields: Value, expected: u8| {
            let found = order.class(Some(&fields.to_string()));
            assert_eq!(found, expected, "{fields}");
        };
        check(json!({"tier": "gold", "stars": 5}), 0);
        check(json!({"tier": "tin", "stars": "5"}), 1);
        check(json!({"tier": "tin", "stars": 1}), 2);
        // Another field missing is no reason not to look at the next expression.
        check(json!({"stars": 4}), 1);
        check(json!({"tier": null}), 2);
        // It cannot be told.
        check(json!({"stars": "many"}), 2);
        assert_eq!(order.class(None), 2);
    }

    #[test]
    fn the_fields_of_an_order_are_read_beside_those_of_the_filter() {
        let order = order(&["a == 1", "b == 2 and a == 2"]).unwrap();
        let of_filter = Fields {
            filtered: vec!["stars".to_owned()],
            ..Fields::default()
        };
        let fields = fields(order.as_ref(), &of_filter).filtered;
        assert_eq!(fields, ["stars", "a", "a", "b"]);
    }

    #[test]
    fn an_expression_that_cannot_be_used_is_named_by_its_index() {
        assert!(order(&[]).unwrap().is_none());
        let refused = order(&["a > 1", "a >"]).unwrap_err();
        assert_eq!(refused.index, 1);
        assert!(
            refused.to_string().starts_with("input.order[1]: "),
            "{refused}"
        );
    }
}
