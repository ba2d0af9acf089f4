//! Which cluster the tests run against: one of their own, or one that the user names.

use std::net::IpAddr;
use std::path::PathBuf;

/// Names a kubeconfig: the cluster of its current context takes the place of the tests' own.
pub const KUBECONFIG: &str = "MILLRACE_E2E_KUBECONFIG";
/// Where that cluster finds the images, as `REGISTRY/PREFIX:TAG`.
const IMAGES: &str = "MILLRACE_E2E_IMAGES";
/// The address of this machine at which that cluster's pods reach the S3 servers of the tests.
const ADDRESS: &str = "MILLRACE_E2E_ADDRESS";

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// One that is made for the tests, and gone with them.
    Own,
    /// One that is there before the tests, and stays.
    Theirs(Theirs),
}

/// A cluster of the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Theirs {
    /// Leads to it.
    pub kubeconfig: PathBuf,
    /// Where it finds the images.
    pub images: Images,
    /// Where its pods find this machine.
    pub address: IpAddr,
}

impl Choice {
    /// The choice of whoever set these variables; what is wrong with them, if something is.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let Some(kubeconfig) = variable(KUBECONFIG) else {
            return Ok(Self::Own);
        };
        let needed = |name, what| {
            let value = variable(name);
            value.ok_or_else(|| format!("{KUBECONFIG} needs {name} beside it: {what}"))
        };
        let images = needed(IMAGES, "REGISTRY/PREFIX:TAG of the images")?;
        let address = needed(ADDRESS, "this machine's address, as pods reach it")?;
        Ok(Self::Theirs(Theirs {
            kubeconfig: kubeconfig.into(),
            images: Images::parse(&images)?,
            address: (address.parse())
                .map_err(|_| format!("{ADDRESS}={address} is no IP address"))?,
        }))
    }
}

/// References of images that differ in the last part of their names alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    prefix: String,
    tag: String,
}

impl Images {
    /// Those that `cargo xtask cluster images` puts into a cluster.
    pub fn loaded() -> Self {
        Self {
            prefix: "localhost/millrace".to_owned(),
            tag: "dev".to_owned(),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':');
        // What follows the colon of a port is a path.
        let parts = parts
            .filter(|(prefix, tag)| !prefix.is_empty() && !tag.is_empty() && !tag.contains('/'));
        let (prefix, tag) =
            parts.ok_or_else(|| format!("{IMAGES}={text} is not REGISTRY/PREFIX:TAG"))?;
        Ok(Self {
            prefix: prefix.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// The reference of one of them.
    pub fn named(&self, name: &str) -> String {
        let Self { prefix, tag } = self;
        format!("{prefix}/{name}:{tag}")
    }
}

/// The choice where these variables are set.
fn chosen(variables: &[(&str, &str)]) -> Result<Choice, String> {
    Choice::of(|name| {
        let mut set = variables.iter();
        let (_, value) = set.find(|(set, _)| *set == name)?;
        Some((*value).to_owned())
    })
}

#[test]
fn without_a_kubeconfig_the_tests_make_a_cluster_of_their_own() {
    assert_eq!(chosen(&[]), Ok(Choice::Own));
    assert_eq!(chosen(&[(IMAGES, "images:dev")]), Ok(Choice::Own));
}

#[test]
fn a_kubeconfig_of_the_users_is_taken_with_the_images_and_the_address_beside_it() {
    let all = [
        (KUBECONFIG, "/home/me/.kube/config"),
        (IMAGES, "localhost:5000/millrace:v7"),
        (ADDRESS, "192.168.1.7"),
    ];
    let Ok(Choice::Theirs(theirs)) = chosen(&all) else {
        panic!("it is not taken");
    };
    assert_eq!(theirs.kubeconfig, PathBuf::from("/home/me/.kube/config"));
    assert_eq!(
        theirs.images.named("worker"),
        "localhost:5000/millrace/worker:v7"
    );
    assert_eq!(theirs.address, IpAddr::from([192, 168, 1, 7]));
}

#[test]
fn what_a_cluster_of_the_users_lacks_is_named() {
    let kubeconfig = (KUBECONFIG, "/home/me/.kube/config");
    let images = (IMAGES, "registry/millrace:v7");
    for (variables, expected) in [
        (&[kubeconfig][..], IMAGES),
        (&[kubeconfig, images], ADDRESS),
        (&[kubeconfig, images, (ADDRESS, "here")], "here is no IP"),
        (
            &[kubeconfig, (IMAGES, "registry:5000/x"), (ADDRESS, "::1")],
            "not REGISTRY/PREFIX:TAG",
        ),
    ] {
        let error = chosen(variables).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
