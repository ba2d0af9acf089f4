//! Paths of the local file system, resolved before anything is opened.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// Resolves `.`, `..` and every symlink of an absolute path. What does not exist yet is kept as it
/// is, but must not hold `..`: nobody can say where that would lead.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        match existing.canonicalize() {
            Ok(mut resolved) => {
                resolved.extend(missing.iter().rev());
                return Ok(resolved);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // A symlink that leads nowhere is not a path that may be created: it would lead elsewhere.
        if existing.is_symlink() {
            let reason = format!("{} is a symlink to nothing", existing.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        let (Some(parent), Some(Component::Normal(name))) =
            (existing.parent(), existing.components().next_back())
        else {
            let reason = "it goes up (..) from a folder that does not exist";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        missing.push(name.to_owned());
        existing = parent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_symlinks_are_resolved_and_missing_names_kept() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        let check = |path: &str, expected: &str| {
            assert_eq!(
                resolve(&root.join(path)).unwrap(),
                root.join(expected),
                "{path}"
            );
        };
        check("link", "real");
        check("link/new/file", "real/new/file");
        check("real/../link/./new", "real/new");
        check("new/", "new");
    }

    #[test]
    fn going_up_from_a_missing_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(resolve(&folder.path().join("missing/../other")).is_err());
    }

    #[test]
    fn a_symlink_to_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
        assert!(resolve(&folder.path().join("link/file")).is_err());
    }
}
