//! What the machine could do at best: multiplying matrices of a model's shapes and nothing else.

use std::fs;
use std::process::Command;

use anyhow::Result;
use serde::Deserialize;

use crate::bench::Bench;
use crate::process::output;

/// What decides the cost of a text.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Dimensions of a token.
    pub hidden: usize,
    /// Tokens of the text.
    pub tokens: usize,
}

impl Shape {
    /// Floating-point operations of a text through a BERT of this shape: a token meets 12 · hidden²
    /// weights in each layer, and each other token twice. Embeddings and the head are next to nothing.
    pub fn flop(self) -> f64 {
        let Self {
            layers,
            hidden,
            tokens,
        } = self;
        let [layers, hidden, tokens] = [layers, hidden, tokens].map(|it| it as f64);
        let weights = 2.0 * 12.0 * hidden * hidden * tokens;
        let attention = 2.0 * 2.0 * hidden * tokens * tokens;
        layers * (weights + attention)
    }
}

#[derive(Deserialize)]
struct Measured {
    gflop_per_second: f64,
}

/// GFLOP/s of the matrix products of a layer, for a batch of `texts`, with the threads that the server has.
pub fn measure(bench: &Bench, shape: Shape, texts: usize) -> Result<f64> {
    let script = bench.folder.join("peak.py");
    fs::write(&script, include_str!("peak.py"))?;
    let threads = std::thread::available_parallelism()?;
    let numbers = [shape.hidden, texts * shape.tokens, threads.get()];
    let mut command = Command::new(&bench.python);
    command.arg(script).args(numbers.map(|it| it.to_string()));
    // The libraries of its own wheel, not ours.
    command.env_remove("LD_LIBRARY_PATH");
    let Measured { gflop_per_second } = serde_json::from_str(&output(&mut command)?)?;
    Ok(gflop_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_bert_base_costs_what_its_weights_and_its_attention_cost() {
        let shape = Shape {
            layers: 12,
            hidden: 768,
            tokens: 32,
        };
        // 85 million weights in the layers, multiplied and added for each token.
        let weights = 2.0 * 84_934_656.0 * 32.0;
        assert_eq!(shape.flop(), weights + 12.0 * 4.0 * 768.0 * 32.0 * 32.0);
    }
}
