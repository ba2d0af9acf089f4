//! The cluster's network: a namespace without a way out, so that nothing in it can reach anything
//! but itself, and all clusters can use the same addresses and ports.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::names::{Cluster, NODE, NODE_IP};
use super::processes::quietly;

/// Makes the namespace with the node's address.
pub fn make(cluster: &Cluster) -> Result<()> {
    let label = cluster.label();
    quietly(Command::new("ip").args(["netns", "add", &label]))?;
    // A bridge without members carries the address: not every kernel has dummy devices. The route
    // leads nowhere, but addresses of services need one before they are translated.
    let device = format!(
        "link set lo up\n\
         link add {NODE} type bridge\n\
         address add {NODE_IP}/24 dev {NODE}\n\
         link set {NODE} up\n\
         route add default via 10.99.0.254 dev {NODE}\n"
    );
    let batch = cluster.path("run/network");
    fs::write(&batch, device)?;
    quietly(Command::new("ip").args(["-n", &label, "-batch"]).arg(batch))
        .context("the cluster's network cannot be made")?;
    Ok(())
}

/// Removes the namespace, if it is there. Processes that users run in it keep it, without its name,
/// until they end.
pub fn remove(cluster: &Cluster) -> Result<()> {
    if cluster.netns().exists() {
        quietly(Command::new("ip").args(["netns", "delete", &cluster.label()]))?;
    }
    Ok(())
}
