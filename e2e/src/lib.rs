//! Whole programs under faults. Everything is in `tests/`: the built binaries are started as real
//! processes, killed, stalled and cut off, and a checker reads what they leave.
