//! Reads the built programs themselves: only the inference-server may need libtorch. What features
//! a build unified, and what the linker then kept, shows nowhere else.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of finished programs.
fn programs() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let target = metadata["target_directory"]
        .as_str()
        .expect("cargo names a target directory");
    Path::new(target).join("release")
}

/// The shared libraries that a program names.
fn needed(program: &str) -> Vec<String> {
    let path = programs().join(program);
    assert!(
        path.exists(),
        "{} is not built: run `cargo xtask test`",
        path.display()
    );
    let output = Command::new("readelf")
        .arg("--dynamic")
        .arg(&path)
        .env("LC_ALL", "C")
        .output()
        .expect("readelf comes with the linker");
    assert!(
        output.status.success(),
        "readelf cannot read {}",
        path.display()
    );
    let listing = String::from_utf8_lossy(&output.stdout);
    let names = listing.lines().filter(|line| line.contains("(NEEDED)"));
    names
        .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned()))
        .collect()
}

fn names_libtorch(libraries: &[String]) -> bool {
    let of_libtorch = ["libtorch", "libc10", "libcudart", "libgomp"];
    libraries
        .iter()
        .any(|library| of_libtorch.iter().any(|name| library.starts_with(name)))
}

#[test]
fn only_the_inference_server_needs_libtorch() {
    let server = needed("millrace-inference-server");
    assert!(
        names_libtorch(&server),
        "the server was built without its backend: {server:?}"
    );
    for program in ["millrace", "millrace-worker", "millrace-operator"] {
        let libraries = needed(program);
        assert!(
            !names_libtorch(&libraries),
            "{program} needs libtorch: {libraries:?}"
        );
    }
}
