//! The allocator's settings for programs that work shards off.

use std::sync::Once;

/// Gives freed blocks of a quarter of a mebibyte and more back to the system at once.
///
/// Windows, lines and uploads come and go in blocks of megabytes on many threads. By default glibc
/// begins to keep such blocks on a heap per thread as soon as the first is freed, and what a
/// process holds drifts far above what its limits add up to.
pub fn give_back_large_blocks() {
    static ONCE: Once = Once::new();
    #[cfg(target_env = "gnu")]
    ONCE.call_once(|| {
        const LARGE_BYTES: libc::c_int = 256 << 10;
        // SAFETY: mallopt only sets a parameter of the allocator, under its own lock.
        let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) == 1 };
        if !is_set {
            tracing::warn!("the allocator refused its setting; memory may grow with the run");
        }
    });
    #[cfg(not(target_env = "gnu"))]
    ONCE.call_once(|| {});
}
