//! Writes `crds/generated/*.yaml` from the types; a test fails while the files are stale.

use std::path::Path;

use millrace_crds::{crd, manifest::Kind};

fn main() -> std::io::Result<()> {
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    for folder in crd::FOLDERS {
        let folder = Path::new(&crate_folder).join(folder);
        std::fs::create_dir_all(&folder)?;
        for kind in Kind::ALL {
            let path = folder.join(crd::file_name(kind));
            std::fs::write(&path, crd::yaml(kind))?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
