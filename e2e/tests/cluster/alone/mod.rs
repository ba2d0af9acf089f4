//! Tests that take away what others need, so that each waits until nobody else is at the cluster. They
//! run one after the other before all those that share it, since tests run in the order of their
//! names: nobody waits for a turn among those that could go on.

mod faults;
mod releases;
mod traces;
