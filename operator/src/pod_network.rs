//! What the pods of services and jobs reach over the network, and who reaches them. Pure.
//!
//! Unless an administrator says more, they reach everything but the addresses at which a machine gives
//! out its identity: rows, models and results lie wherever their owners put them.

use std::str::FromStr;

use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPeer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::Options;

/// Link-local addresses, and what gives out identities or settings of a machine elsewhere: Alibaba
/// Cloud's and Azure's. The worker refuses the same by itself.
const METADATA_V4: [&str; 3] = ["169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32"];

/// The same in IPv6: link-local ones, Amazon's and Google's.
const METADATA_V6: [&str; 3] = ["fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128"];

/// Port of names. Caches of a node's own listen at a link-local address.
const DNS_PORT: u16 = 53;

/// Peers of a NetworkPolicy, as a JSON list.
#[derive(Debug, Clone, PartialEq)]
pub struct Peers(Vec<NetworkPolicyPeer>);

/// Egress rules of a NetworkPolicy, as a JSON list.
#[derive(Debug, Clone, PartialEq)]
pub struct EgressRules(Vec<NetworkPolicyEgressRule>);

impl FromStr for Peers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parsed(text).map(Self)
    }
}

impl FromStr for EgressRules {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parsed(text).map(Self)
    }
}

/// A list with nothing in it that its type does not know: a rule whose only word is misspelt would be
/// an empty one, which allows everything.
fn parsed<T: DeserializeOwned + Serialize>(text: &str) -> Result<Vec<T>, String> {
    let given: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let known: Vec<T> = serde_json::from_value(given.clone()).map_err(|error| error.to_string())?;
    if json!(known) != given {
        return Err(format!(
            "a NetworkPolicy has other fields; of what was given only this is known: {}",
            json!(known)
        ));
    }
    Ok(known)
}

/// Who reaches the pods of a service: its namespace, and whom an administrator names beside it.
pub fn ingress_peers(options: &Options) -> Vec<Value> {
    let Peers(more) = &options.pod_ingress_from;
    let own = json!({"podSelector": {}});
    let more = more.iter().map(|peer| json!(peer));
    std::iter::once(own).chain(more).collect()
}

/// What all pods reach.
pub fn egress_rules(options: &Options) -> Value {
    if let Some(EgressRules(rules)) = &options.pod_egress {
        return json!(rules);
    }
    if options.allow_link_local {
        return json!([{}]);
    }
    let everywhere = [("0.0.0.0/0", METADATA_V4), ("::/0", METADATA_V6)];
    let everywhere =
        everywhere.map(|(cidr, except)| json!({"ipBlock": {"cidr": cidr, "except": except}}));
    let [v4, v6] = everywhere;
    json!([
        {"ports": [
            {"protocol": "UDP", "port": DNS_PORT}, {"protocol": "TCP", "port": DNS_PORT},
        ]},
        // For some network plugins the pods of the cluster are in no block of addresses.
        {"to": [v4, v6, {"namespaceSelector": {}}]},
    ])
}

#[cfg(test)]
mod tests {

    use super::*;

    fn options(more: &[&str]) -> Options {
        Options::of_tests(&[&["--redis-url=redis://redis"], more].concat())
    }

    #[test]
    fn pods_reach_everything_but_what_gives_out_the_identity_of_a_machine() {
        let rules = egress_rules(&options(&[]));
        let names = &rules[0];
        assert_eq!(names.get("to"), None, "a node's own cache is link-local");
        assert_eq!(names["ports"][0]["port"], 53);
        let peers = rules[1]["to"].as_array().unwrap();
        let except = |index: usize| peers[index]["ipBlock"]["except"].to_string();
        assert!(except(0).contains("\"169.254.0.0/16\""));
        assert!(except(1).contains("\"fe80::/10\""));
        assert_eq!(rules[1].get("ports"), None, "stores and APIs are anywhere");
        assert_eq!(peers[2], json!({"namespaceSelector": {}}));
    }

    #[test]
    fn an_administrator_opens_link_local_addresses_or_says_what_pods_reach() {
        let open = egress_rules(&options(&["--allow-link-local"]));
        assert_eq!(open, json!([{}]), "everything");
        let rules = r#"[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8"}}],"ports":[{"port":443}]}]"#;
        let narrow = egress_rules(&options(&["--pod-egress", rules]));
        assert_eq!(narrow.to_string().len(), rules.len());
        assert_eq!(narrow[0]["to"][0]["ipBlock"]["cidr"], "10.0.0.0/8");
    }

    #[test]
    fn whoever_scrapes_pods_is_let_in_beside_their_namespace() {
        let own = json!({"podSelector": {}});
        let usual = ingress_peers(&options(&[]));
        assert_eq!(usual, std::slice::from_ref(&own));
        let monitoring = json!({"namespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": "monitoring"},
        }});
        let given = json!([monitoring]).to_string();
        let peers = ingress_peers(&options(&["--pod-ingress-from", &given]));
        assert_eq!(peers, [own, monitoring]);
    }

    #[test]
    fn a_misspelt_rule_does_not_open_everything() {
        let wrong = EgressRules::from_str(r#"[{"too": [{"podSelector": {}}]}]"#);
        assert!(wrong.unwrap_err().contains("other fields"));
        assert!(Peers::from_str("{}").is_err());
        assert!(Peers::from_str(r#"[{"podSelector": {}}]"#).is_ok());
    }
}
