//! `cargo xtask <task>`: the project's tasks, each one command from a fresh clone.

mod bench;
mod cache;
mod cluster;
mod corpus;
mod demo;
mod needs;
mod process;
mod setup;
mod tasks;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <task>

  demo     set up, build, embed some 20,000 texts of this machine and search them
  test     set up, then format, lint, build and run every test
  bench    compare engine, whole jobs and sentence-transformers in one run
  models   train the classifiers of the examples; bert-base makes them as large as that
  setup    only fetch what the others need: libtorch, the model, the servers of the tests
  cluster  up, images, env, down: a real Kubernetes on this machine, with the programs as images;
           control-plane: an API server alone, for as long as its input stays open

Downloads are pinned by hash and kept in $MILLRACE_CACHE, by default ~/.cache/millrace.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["demo"] => demo::run_demo(),
        ["bench", rest @ ..] => bench::run_bench(rest),
        ["test"] => tasks::test(),
        ["models"] => tasks::models(setup::MINILM),
        ["models", "bert-base"] => tasks::models(setup::BERT_BASE),
        ["setup"] => tasks::setup(),
        ["cluster", rest @ ..] => cluster::run_cluster(rest),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
