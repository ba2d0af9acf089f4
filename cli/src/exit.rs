//! Exit codes, documented in `millrace --help` and README.md.

use std::error::Error;
use std::process::ExitCode;

use millrace_crds::manifest::ManifestError;
use millrace_protocol::manifest::Manifest;
use millrace_worker::manifests::LoadError;

/// The manifest or the arguments are wrong; nothing was done. Also what clap exits with.
pub const BAD_MANIFEST: u8 = 2;
/// The job is finished, and some shards could not be worked off at all.
pub const FAILED_SHARDS: u8 = 3;
/// Stopped by a signal; the same command goes on.
pub const INTERRUPTED: u8 = 130;

/// The code of a finished job. Rows that ended as reported errors are a job's normal business.
pub fn of(manifest: &Manifest) -> ExitCode {
    if manifest.complete {
        ExitCode::SUCCESS
    } else {
        FAILED_SHARDS.into()
    }
}

/// Prints why the manifest was refused, problem by problem.
pub fn bad_manifest(error: &(dyn Error + 'static)) -> ExitCode {
    let of_load = match error.downcast_ref() {
        Some(LoadError::Manifest(error)) => Some(error),
        _ => None,
    };
    match of_load.or_else(|| error.downcast_ref::<ManifestError>()) {
        Some(error) => {
            for problem in error.problems() {
                eprintln!("error: {problem}");
            }
        }
        None => eprintln!("error: {}", millrace_telemetry::chain(error)),
    }
    BAD_MANIFEST.into()
}
