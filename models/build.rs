//! Lets the tests find libtorch where the build found it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    let folder = std::env::var("LIBTORCH_LIB").or_else(|_| std::env::var("LIBTORCH"));
    if let Ok(folder) = folder {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}/lib");
    }
}
