//! How this program was called, so that what it advises can be typed as it stands.

use std::path::Path;

/// What `kubectl` looks for when it is asked for `kubectl millrace`.
const PLUGIN: &str = "kubectl-millrace";

/// The words before a command's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    program: &'static str,
    /// What goes behind each command: the flags that chose the cluster and the namespace.
    flags: String,
}

impl Invocation {
    /// That of this process, without flags.
    pub fn new() -> Self {
        Self::with_flags(String::new())
    }

    /// That of this process.
    pub fn with_flags(flags: String) -> Self {
        let program = program_of(std::env::args_os().next().as_deref().map(Path::new));
        Self { program, flags }
    }

    /// `millrace`, or `kubectl millrace`.
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// A command as a person would type it.
    pub fn command(&self, words: &str) -> String {
        self.of(self.program, words)
    }

    /// A command of kubectl itself, in the same cluster.
    pub fn kubectl(&self, words: &str) -> String {
        self.of("kubectl", words)
    }

    fn of(&self, program: &str, words: &str) -> String {
        let flags = &self.flags;
        if flags.is_empty() {
            format!("{program} {words}")
        } else {
            format!("{program} {words} {flags}")
        }
    }
}

fn program_of(called: Option<&Path>) -> &'static str {
    let name = called.and_then(Path::file_name);
    if name.is_some_and(|name| name == PLUGIN) {
        "kubectl millrace"
    } else {
        "millrace"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_of_kubectl_is_called_as_one() {
        for (called, program) in [
            (Some("/usr/bin/millrace"), "millrace"),
            (
                Some("/home/me/.krew/bin/kubectl-millrace"),
                "kubectl millrace",
            ),
            (None, "millrace"),
        ] {
            assert_eq!(program_of(called.map(Path::new)), program);
        }
    }

    #[test]
    fn the_flags_that_chose_the_cluster_stand_behind_every_command() {
        let invocation = Invocation {
            program: "kubectl millrace",
            flags: "-n tenant".to_owned(),
        };
        assert_eq!(
            invocation.command("status embed"),
            "kubectl millrace status embed -n tenant"
        );
        assert_eq!(invocation.kubectl("get pods"), "kubectl get pods -n tenant");
    }
}
