//! Keys, certificates and tokens of a cluster, made anew with it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::names::{API_SERVICE_IP, Cluster, NODE, NODE_IP};
use super::processes::quietly;

/// Days that certificates are good for: longer than any cluster of tests is kept.
const DAYS: &str = "3650";

/// Who calls the API server: the name of the kubeconfig, the user, and the group.
///
/// The tokens are no secrets. Whoever can reach the API server is root on this machine already.
const USERS: [(&str, &str, &str); 6] = [
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
    ("kubelet", "system:node:node0", "system:nodes"),
    ("coredns", "coredns", "system:masters"),
];

/// Makes them all below `pki/`, and a kubeconfig for each user.
pub fn make(cluster: &Cluster) -> Result<()> {
    let folder = cluster.path("pki");
    fs::write(folder.join("openssl.conf"), openssl_conf())?;
    certificate(&folder, "ca", "/CN=millrace-cluster", None)?;
    certificate(&folder, "apiserver", "/CN=kube-apiserver", Some("server"))?;
    // The kubelet knows the API server by this one when logs are read or commands run in pods.
    let to_kubelet = "/O=system:masters/CN=kube-apiserver-kubelet-client";
    certificate(&folder, "apiserver-to-kubelet", to_kubelet, Some("client"))?;
    key(&folder, "service-accounts")?;
    let mut public = Command::new("openssl");
    public
        .args(["pkey", "-in", "service-accounts.key", "-pubout"])
        .args(["-out", "service-accounts.pub"])
        .current_dir(&folder);
    quietly(&mut public)?;
    fs::write(folder.join("tokens.csv"), tokens())?;
    for (name, _, _) in USERS {
        let file = cluster.path(&format!("{name}.kubeconfig"));
        let port = cluster.listening().api_port;
        fs::write(file, kubeconfig(name, port, &folder.join("ca.crt")))?;
    }
    Ok(())
}

fn openssl_conf() -> String {
    debug_assert!(USERS.iter().any(|(_, user, _)| user.ends_with(NODE)));
    format!(
        "[req]\ndistinguished_name = none\n[none]\n\
         [ca]\nbasicConstraints = critical, CA:TRUE\n\
         [server]\nbasicConstraints = critical, CA:FALSE\nextendedKeyUsage = serverAuth\n\
         subjectAltName = IP:127.0.0.1, IP:{NODE_IP}, IP:{API_SERVICE_IP}, DNS:localhost, \
         DNS:kubernetes, DNS:kubernetes.default, DNS:kubernetes.default.svc, \
         DNS:kubernetes.default.svc.cluster.local\n\
         [client]\nbasicConstraints = critical, CA:FALSE\nextendedKeyUsage = clientAuth\n"
    )
}

/// Makes `<name>.key`.
fn key(folder: &Path, name: &str) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .arg("-out")
        .arg(format!("{name}.key"))
        .current_dir(folder);
    quietly(&mut openssl).map(drop)
}

/// Makes `<name>.key` and `<name>.crt`, signed by the authority where it serves a `purpose`, and by
/// itself where it is the authority.
fn certificate(folder: &Path, name: &str, subject: &str, purpose: Option<&str>) -> Result<()> {
    key(folder, name)?;
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-new",
            "-x509",
            "-config",
            "openssl.conf",
            "-days",
            DAYS,
        ])
        .args(["-subj", subject, "-extensions", purpose.unwrap_or("ca")])
        .arg("-key")
        .arg(format!("{name}.key"))
        .arg("-out")
        .arg(format!("{name}.crt"))
        .current_dir(folder);
    if purpose.is_some() {
        openssl.args(["-CA", "ca.crt", "-CAkey", "ca.key"]);
    }
    quietly(&mut openssl).map(drop)
}

/// The file in which the API server looks tokens up.
fn tokens() -> String {
    let lines = USERS
        .iter()
        .enumerate()
        .map(|(id, (name, user, group))| format!("{},{user},{id},\"{group}\"\n", token(name)));
    lines.collect()
}

fn token(name: &str) -> String {
    format!("{name}-token")
}

fn kubeconfig(name: &str, port: u16, authority: &Path) -> String {
    let (authority, token) = (authority.display(), token(name));
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters: [{{name: millrace, cluster: {{server: 'https://127.0.0.1:{port}', \
         certificate-authority: '{authority}'}}}}]\n\
         users: [{{name: {name}, user: {{token: {token}}}}}]\n\
         contexts: [{{name: millrace, context: {{cluster: millrace, user: {name}}}}}]\n\
         current-context: millrace\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_the_token_of_its_kubeconfig() {
        let tokens = tokens();
        for (name, user, group) in USERS {
            assert!(kubeconfig(name, 6443, Path::new("/ca")).contains(&token(name)));
            assert!(tokens.contains(&format!("{name}-token,{user},")), "{name}");
            assert!(tokens.contains(&format!("\"{group}\"")), "{name}");
        }
    }
}
