//! `spec.maxFailedRows`: when a job is given up for the rows that failed. Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use schemars::{Schema, SchemaGenerator, json_schema};

use super::BatchJobSpec;

/// Rows that must be done before a percentage says anything.
const PERCENT_ROWS_MIN: u64 = 100;

/// How many rows may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedRowsMax {
    /// So many.
    Rows(u64),
    /// So many of a hundred that are done.
    Percent(u64),
}

impl BatchJobSpec {
    /// How many rows may fail before the job is given up, if it says so.
    pub fn failed_rows_max(&self) -> Option<FailedRowsMax> {
        match self.max_failed_rows.as_ref()? {
            IntOrString::Int(rows) => u64::try_from(*rows).ok().map(FailedRowsMax::Rows),
            IntOrString::String(percent) => {
                let percent = percent.strip_suffix('%')?.parse().ok()?;
                Some(FailedRowsMax::Percent(percent))
            }
        }
    }
}

/// The schema of a number or a percentage.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "pattern": "^(100|[1-9]?[0-9])%$",
    })
}

impl FailedRowsMax {
    /// Whether more rows failed than may.
    pub fn is_exceeded(self, failed: u64, done: u64) -> bool {
        match self {
            FailedRowsMax::Rows(max) => failed > max,
            FailedRowsMax::Percent(max) => {
                let of = done.max(PERCENT_ROWS_MIN);
                u128::from(failed) * 100 > u128::from(max) * u128::from(of)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_speaks_of_the_rows_that_are_done() {
        let five = FailedRowsMax::Percent(5);
        assert!(!five.is_exceeded(5, 5), "a hundred rows count at least");
        assert!(five.is_exceeded(6, 10));
        assert!(!five.is_exceeded(5, 100));
        assert!(five.is_exceeded(6, 100));
        assert!(!five.is_exceeded(10, 200));
        assert!(!FailedRowsMax::Rows(3).is_exceeded(3, 3));
        assert!(FailedRowsMax::Rows(0).is_exceeded(1, 1));
    }
}
