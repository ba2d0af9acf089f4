//! Exit codes, documented in `millrace --help` and README.md.

use std::process::ExitCode;

use millrace_protocol::manifest::Manifest;

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

/// Prints why the manifest was refused.
pub fn bad_manifest(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", millrace_telemetry::chain(error));
    BAD_MANIFEST.into()
}
