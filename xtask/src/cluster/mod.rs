//! `cargo xtask cluster`: a real Kubernetes of one node on this machine, in a network of its own
//! without a way out. `up` makes it in seconds once its programs are built, and `down` leaves nothing
//! of it but caches. `control-plane` is an API server alone, which takes no rights to make.

mod archive;
mod cgroups;
mod configs;
mod control_plane;
mod env;
mod images;
mod libraries;
mod names;
mod network;
mod node;
mod pki;
mod processes;
mod programs;
mod root;
mod up;
mod wait;

use anyhow::{Result, bail, ensure};

use crate::cache::Cache;
use crate::needs::{self, Task};
use crate::setup;
pub use env::Environment;
use names::{Cluster, DEFAULT_NAME};

const USAGE: &str = "\
usage: cargo xtask cluster <action> [--name NAME]

  up             a Kubernetes of one node, or nothing if it is up already
  images         the programs that are built, and the servers beside them, as images in it
  env [--json]   what a shell evaluates to reach it, or the same as JSON
  down [--images]
                 ends it; its images stay for the next one of this name, unless they are to go too
  control-plane [--if-built]
                 an API server alone, for as long as its input stays open

NAME keeps clusters apart that stand side by side: 1 to 20 of a-z, 0-9 and -, by default dev.
";

const HELP: [&str; 3] = ["help", "--help", "-h"];

/// What a user chose.
#[derive(Debug, PartialEq, Eq)]
struct Choice<'a> {
    action: Action,
    name: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Up,
    Images,
    Env { json: bool },
    Down { images: bool },
}

/// Does what the arguments say.
pub fn run_cluster(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["control-plane"] => return control_plane::run(control_plane::Programs::Built),
        ["control-plane", "--if-built"] => {
            return control_plane::run(control_plane::Programs::IfBuilt);
        }
        _ if arguments.iter().any(|it| HELP.contains(it)) => {
            print!("{USAGE}");
            return Ok(());
        }
        _ => {}
    }
    let Choice { action, name } = choice(arguments)?;
    let cluster = Cluster::named(name)?;
    if let Action::Env { json } = action {
        return print_environment(name, json);
    }
    ensure!(
        needs::is_root(),
        "only root can make the namespaces, mounts and cgroups of a cluster"
    );
    if let Action::Down { images } = action {
        let _lock = cluster.lock()?;
        up::down(&cluster)?;
        let folder = cluster.folder().display();
        if images {
            up::forget(&cluster)?;
            println!("the cluster {name} is down, and its images are gone");
        } else {
            println!(
                "the cluster {name} is down; its images stay in {folder}, unless --images is given"
            );
        }
        return Ok(());
    }
    needs::check(Task::Cluster)?;
    setup::kubernetes(&Cache::open()?)?;
    let _lock = cluster.lock()?;
    if action == Action::Images {
        return images::load_all(&cluster);
    }
    if up::is_up(&cluster) {
        println!("the cluster {name} is up already");
    } else {
        up::up(&cluster)?;
    }
    print!("{}", next(name));
    Ok(())
}

/// Where the cluster of that name is reached.
pub fn environment(name: &str) -> Result<Environment> {
    let cluster = Cluster::named(name)?;
    ensure!(
        cluster.kubeconfig().exists(),
        "there is no cluster {name}: cargo xtask cluster up --name {name}"
    );
    Ok(Environment::of(&cluster))
}

fn print_environment(name: &str, json: bool) -> Result<()> {
    let environment = environment(name)?;
    if json {
        println!("{}", serde_json::to_string(&environment)?);
    } else {
        print!("{}", environment.shell());
    }
    Ok(())
}

/// What to do with a cluster that is up.
fn next(name: &str) -> String {
    let named = if name == DEFAULT_NAME {
        String::new()
    } else {
        format!(" --name {name}")
    };
    format!(
        "\nuse it:       eval \"$(cargo xtask cluster env{named})\"\n\
         \x20             millrace_in kubectl get pods --all-namespaces\n\
         its images:   cargo xtask cluster images{named}\n\
         end it:       cargo xtask cluster down{named}\n"
    )
}

fn choice<'a>(arguments: &[&'a str]) -> Result<Choice<'a>> {
    let (action, options) = match arguments {
        ["up", rest @ ..] => (Action::Up, rest),
        ["images", rest @ ..] => (Action::Images, rest),
        ["env", rest @ ..] => (Action::Env { json: false }, rest),
        ["down", rest @ ..] => (Action::Down { images: false }, rest),
        _ => bail!("{USAGE}"),
    };
    let mut choice = Choice {
        action,
        name: DEFAULT_NAME,
    };
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match (*option, &mut choice.action) {
            ("--json", Action::Env { json }) => *json = true,
            ("--images", Action::Down { images }) => *images = true,
            ("--name", _) => match options.next() {
                Some(name) => choice.name = name,
                None => bail!("--name needs a name\n\n{USAGE}"),
            },
            (other, _) => bail!("{other:?} is unknown here\n\n{USAGE}"),
        }
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_any_order_and_refused_where_they_mean_nothing() {
        let env = Choice {
            action: Action::Env { json: true },
            name: "e2e",
        };
        assert_eq!(choice(&["env", "--json", "--name", "e2e"]).unwrap(), env);
        assert_eq!(choice(&["env", "--name", "e2e", "--json"]).unwrap(), env);
        assert_eq!(choice(&["up"]).unwrap().name, DEFAULT_NAME);
        let down = Choice {
            action: Action::Down { images: true },
            name: "e2e",
        };
        assert_eq!(
            choice(&["down", "--name", "e2e", "--images"]).unwrap(),
            down
        );
        for wrong in [
            &["up", "--json"][..],
            &["up", "--images"],
            &["up", "--name"],
            &["fly"],
            &[],
        ] {
            assert!(choice(wrong).is_err(), "{wrong:?}");
        }
    }
}
