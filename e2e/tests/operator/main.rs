//! The operator against a real API server, under faults. Nothing else of Kubernetes is there: the
//! tests play its Job controller, its kubelet and the workers themselves, so that they know what
//! should come of it, and every point at which the operator can fail is tried.
//!
//! They need no rights, but the programs of Kubernetes, or are skipped with a note of the reason.

mod admission;
mod budget;
mod children;
mod control_plane;
mod courses;
mod crashes;
mod crds;
mod election;
mod failures;
mod garbage;
mod jobs;
mod operator;
mod picture;
mod progress;
mod scenario;
mod stops;
mod tenant;
mod watched;
mod world;
