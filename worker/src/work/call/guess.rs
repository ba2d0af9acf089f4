//! How many tokens a call will take, judged by those before it. Pure.
//!
//! Guesses lie on the side of too many: what is guessed too low is above a limit before anybody
//! knows.

use crate::job::Step;
use crate::work::client::remote::Usage;

/// Tokens in a byte of a request before one was answered. Text has a quarter of one or less, other
/// scripts have more.
const INPUT_PER_BYTE: f64 = 0.4;

/// Tokens of an answer to a row before one was seen, where the job names no most.
const OUTPUT_PER_ROW: f64 = 500.0;

/// Tokens in a byte of a request at least: of long words in a language that the model knows well.
const INPUT_PER_BYTE_LEAST: f64 = 0.15;

/// By how much a guess is above the most that was seen lately.
const MARGIN: f64 = 1.1;

/// How fast what was seen is forgotten.
const FORGET: f64 = 0.02;

/// What was seen so far.
#[derive(Debug)]
pub struct Guess {
    input_per_byte: Most,
    output_per_row: Most,
}

/// The most that was seen lately.
#[derive(Debug)]
struct Most {
    value: f64,
    is_seen: bool,
}

impl Most {
    fn see(&mut self, value: f64) {
        self.value = match self.is_seen {
            false => value,
            true => value.max(self.value + (value - self.value) * FORGET),
        };
        self.is_seen = true;
    }

    fn guess(&self) -> f64 {
        if self.is_seen {
            self.value * MARGIN
        } else {
            self.value
        }
    }
}

impl Guess {
    /// What is guessed before anything was seen.
    pub fn new(steps: &[Step]) -> Self {
        let most = steps.iter().filter_map(|step| {
            let most = step.prompt.as_ref()?.max_output_tokens?;
            Some(f64::from(most))
        });
        let output = most.reduce(f64::max).unwrap_or(OUTPUT_PER_ROW);
        let unseen = |value| Most {
            value,
            is_seen: false,
        };
        Self {
            input_per_byte: unseen(INPUT_PER_BYTE),
            output_per_row: unseen(output),
        }
    }

    /// Tokens of a call; `writes` says whether it is answered with text.
    pub fn usage(&self, bytes: usize, rows: usize, writes: bool) -> Usage {
        let input = self.input_per_byte.guess() * bytes as f64;
        let output = match writes {
            true => self.output_per_row.guess() * rows as f64,
            false => 0.0,
        };
        Usage {
            input: input.ceil() as u64,
            output: output.ceil() as u64,
        }
    }

    /// Tokens of a call at least.
    pub fn least(bytes: usize, rows: usize, writes: bool) -> Usage {
        Usage {
            input: (INPUT_PER_BYTE_LEAST * bytes as f64) as u64,
            output: if writes { rows as u64 } else { 0 },
        }
    }

    /// Learns from a call.
    pub fn learn(&mut self, bytes: usize, rows: usize, usage: Usage) {
        self.input_per_byte
            .see(usage.input as f64 / bytes.max(1) as f64);
        self.output_per_row
            .see(usage.output as f64 / rows.max(1) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_is_a_little_above_the_most_that_was_seen() {
        let mut guess = Guess::new(&[]);
        let tokens = |guess: &Guess, writes| guess.usage(100, 2, writes).total();
        assert_eq!(tokens(&guess, true), 1_040);
        assert_eq!(tokens(&guess, false), 40);
        let usage = |input, output| Usage { input, output };
        guess.learn(100, 2, usage(25, 20));
        assert_eq!(tokens(&guess, true), 50);
        guess.learn(100, 2, usage(20, 10));
        let later = tokens(&guess, true);
        assert!((45..=50).contains(&later), "{later}");
    }
}
