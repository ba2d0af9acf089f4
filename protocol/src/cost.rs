//! Money: what calls of a paid API cost. Whole numbers alone, so that a sum is exact whatever its
//! order.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Parts of a currency's unit that are counted. Prices are named for a million tokens and with six
/// decimals at most, so one token costs a whole number of these.
const PARTS: u64 = 1_000_000_000_000;

/// Decimals of an amount.
const DECIMALS: usize = 12;

/// An amount of money in some currency, in millionths of a millionth of its unit. Written as a
/// decimal number in a string, since few readers of JSON keep so many digits of a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost(u64);

impl Cost {
    /// Nothing at all.
    pub const NOTHING: Self = Self(0);

    /// The amount of so many parts.
    pub fn of_parts(parts: u64) -> Self {
        Self(parts)
    }

    /// Its parts.
    pub fn parts(self) -> u64 {
        self.0
    }

    /// Whether it is nothing.
    pub fn is_nothing(&self) -> bool {
        self.0 == 0
    }

    /// The amount without another one, and nothing if that is more.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The amount divided by `count`, rounded up.
    pub fn per(self, count: u64) -> Self {
        Self(self.0.div_ceil(count.max(1)))
    }

    /// The amount, whole units and their parts, for gauges and other places that know no exact number.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / PARTS as f64
    }

    /// As people read it: six decimals, or all where these say nothing.
    pub fn short(self) -> String {
        const SHOWN: u64 = PARTS / 1_000_000;
        match self.0.div_ceil(SHOWN) {
            1 => self.to_string(),
            shown => Self(shown.saturating_mul(SHOWN)).to_string(),
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, parts) = (self.0 / PARTS, self.0 % PARTS);
        if parts == 0 {
            return write!(f, "{whole}");
        }
        let decimals = format!("{parts:0DECIMALS$}");
        write!(f, "{whole}.{}", decimals.trim_end_matches('0'))
    }
}

/// A text is no amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a decimal number of at most {DECIMALS} decimals, such as 0.15")]
pub struct NoCost;

impl FromStr for Cost {
    type Err = NoCost;

    fn from_str(text: &str) -> Result<Self, NoCost> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(decimals) || decimals.len() > DECIMALS {
            return Err(NoCost);
        }
        let whole: u64 = whole.parse().map_err(|_| NoCost)?;
        let parts: u64 = format!("{decimals:0<DECIMALS$}").parse().expect("digits");
        let whole = whole.checked_mul(PARTS).ok_or(NoCost)?;
        whole.checked_add(parts).map(Self).ok_or(NoCost)
    }
}

impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Self) -> Cost {
        Cost(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), Cost::add)
    }
}

/// What an API takes for its calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prices {
    input_token: Cost,
    output_token: Cost,
    call: Cost,
}

impl Prices {
    /// Prices of a million tokens of prompts and of answers, each with six decimals at most, and of a
    /// call.
    pub fn new(million_input_tokens: Cost, million_output_tokens: Cost, call: Cost) -> Self {
        let token = |million: Cost| Cost(million.0 / 1_000_000);
        Self {
            input_token: token(million_input_tokens),
            output_token: token(million_output_tokens),
            call,
        }
    }

    /// The price of some calls that took so many tokens together.
    pub fn of(&self, calls: u64, input_tokens: u64, output_tokens: u64) -> Cost {
        let times = |price: Cost, count: u64| Cost(price.0.saturating_mul(count));
        times(self.call, calls)
            + times(self.input_token, input_tokens)
            + times(self.output_token, output_tokens)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cost(text: &str) -> Cost {
        text.parse().unwrap()
    }

    #[test]
    fn the_price_of_a_single_cheap_token_is_exact() {
        let prices = Prices::new(cost("0.02"), cost("0.0375"), cost("0"));
        assert_eq!(prices.of(1, 1, 0).to_string(), "0.00000002");
        assert_eq!(prices.of(1, 0, 1).to_string(), "0.0000000375");
        let calls: Cost = (0..1_000_000).map(|_| prices.of(1, 7, 3)).sum();
        assert_eq!(calls, prices.of(0, 7_000_000, 3_000_000));
        assert_eq!(calls.to_string(), "0.2525");
        let with_calls = Prices::new(cost("1"), cost("2"), cost("0.001"));
        assert_eq!(with_calls.of(3, 0, 0), cost("0.003"));
    }

    #[test]
    fn an_amount_is_shown_with_as_many_decimals_as_say_something() {
        for (exact, short) in [
            ("0", "0"),
            ("12", "12"),
            ("0.25", "0.25"),
            ("0.0012345678", "0.001235"),
            ("0.00000002", "0.00000002"),
        ] {
            assert_eq!(cost(exact).short(), short);
        }
        assert_eq!(cost("1").per(3), cost("0.333333333334"));
        assert_eq!(cost("1").per(0), cost("1"));
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for bad in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "1e3",
            "0.1234567890123",
            "1,5",
            "99999999999",
        ] {
            assert_eq!(bad.parse::<Cost>(), Err(NoCost), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_amount_reads_back(parts in any::<u64>()) {
            let written = Cost::of_parts(parts);
            prop_assert_eq!(cost(&written.to_string()), written);
        }
    }
}
