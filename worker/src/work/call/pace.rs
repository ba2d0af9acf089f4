//! How many rows travel in one call. Pure.
//!
//! A fixed number, unless the service lets it grow: then a little more with each call that went well
//! while more rows wait, and half of it when an answer is late or cannot be split.

/// How much a call that went well adds to the rows of the next.
const GROWTH: f64 = 0.5;

/// The rows of the next call.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    rows: f64,
    rows_max: f64,
    is_fixed: bool,
}

impl Pace {
    /// Begins with `rows`; `rows_max` lets it move.
    pub fn new(rows: u32, rows_max: Option<u32>) -> Self {
        Self {
            rows: f64::from(rows),
            rows_max: f64::from(rows_max.unwrap_or(rows)),
            is_fixed: rows_max.is_none(),
        }
    }

    /// Rows of the next call, at least 1.
    pub fn rows(&self) -> usize {
        (self.rows as usize).max(1)
    }

    /// A call with so many rows went well. One with far fewer than the next will have says nothing.
    pub fn went_well(&mut self, rows: usize) {
        if !self.is_fixed && rows as f64 * 2.0 >= self.rows {
            self.rows = (self.rows + GROWTH).min(self.rows_max);
        }
    }

    /// A call with so many rows was too large.
    pub fn was_too_large(&mut self, rows: usize) {
        if !self.is_fixed && rows > 1 {
            self.rows = (rows as f64 / 2.0).min(self.rows).max(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_number_stays() {
        let mut pace = Pace::new(5, None);
        pace.went_well(5);
        pace.was_too_large(5);
        assert_eq!(pace.rows(), 5);
    }

    #[test]
    fn rows_grow_while_calls_go_well_and_halve_when_one_was_too_large() {
        let mut pace = Pace::new(5, Some(20));
        for _ in 0..100 {
            let rows = pace.rows();
            pace.went_well(rows);
        }
        assert_eq!(pace.rows(), 20);
        pace.was_too_large(20);
        assert_eq!(pace.rows(), 10);
    }
}
