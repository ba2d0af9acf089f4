//! Panics in the logs: where each happened, and nothing of what it says. The panics of the standard library
//! quote the text that was at hand, and a row's text belongs in no log.

/// Has every panic of this process logged by its place alone, in the place of what Rust prints.
pub(crate) fn log_places() {
    std::panic::set_hook(Box::new(|panic| {
        if let Some(at) = panic.location() {
            let place = format!("{}:{}", at.file(), at.line());
            // A panic while something is logged, or one that nobody wants logged, is told all the same.
            match tracing::event_enabled!(tracing::Level::ERROR) {
                true => tracing::error!(place, "this program panicked"),
                false => eprintln!("this program panicked at {place}"),
            }
        }
    }));
}
