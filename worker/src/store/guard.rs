//! HTTP clients that never reach the services of a machine's own link, which give out the machine's
//! identity to whoever asks, nor, in a pod, what listens within it. An endpoint is named by whoever writes a Secret, so the addresses are
//! looked at themselves: written in any form, behind a name each time it is resolved, and where a
//! redirect leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use url::{Host, Url};

use super::{LINK_LOCAL_VARIABLE, LOOPBACK_VARIABLE, LinkLocal, Loopback};

/// Redirects that one request follows.
const REDIRECTS_MAX: usize = 5;

/// Services that give out identities or settings of a machine at addresses that are not link-local.
const METADATA: [IpAddr; 3] = [
    // Alibaba Cloud.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Google Cloud.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// An address that may not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} leads to {address}, which is {what}; an administrator allows such endpoints with \
     {variable}=true"
)]
pub struct Forbidden {
    host: String,
    address: IpAddr,
    what: &'static str,
    variable: &'static str,
}

/// Why a URL cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// It is none.
    #[error(transparent)]
    Url(#[from] url::ParseError),
    /// It names an address that may not be reached.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The client could not be made from its settings.
    #[error(transparent)]
    Client(#[from] reqwest::Error),
}

/// Which addresses may be reached.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether link-local addresses and metadata services may be.
    pub link_local: LinkLocal,
    /// Whether addresses of this machine or pod itself may be.
    pub loopback: Loopback,
}

/// Makes guarded clients.
#[derive(Debug)]
pub struct Guard {
    /// What they reach.
    pub rules: Rules,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a request may take.
    pub timeout: Duration,
}

impl HttpConnector for Guard {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let rules = self.rules;
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let client = reqwest::Client::builder()
            .connect_timeout(self.connect_timeout)
            .timeout(self.timeout)
            .https_only(allows_http.is_none_or(|it| it != "true"))
            .dns_resolver(Arc::new(GuardedNames(rules)))
            .redirect(Policy::custom(move |attempt| {
                if attempt.previous().len() > REDIRECTS_MAX {
                    return attempt.error("too many redirects");
                }
                match rules.literal(attempt.url()) {
                    Ok(()) => attempt.follow(),
                    Err(forbidden) => attempt.error(forbidden),
                }
            }))
            .build();
        let client = client.map_err(|error| object_store::Error::Generic {
            store: "HTTP client",
            source: Box::new(error),
        })?;
        Ok(HttpClient::new(GuardedClient { client, rules }))
    }
}

/// A client for `url`, which its user names, that reaches no service of the machine's own link, and in a
/// pod none within it, unless that is allowed.
pub fn guarded(
    client: reqwest::ClientBuilder,
    url: &str,
    link_local: LinkLocal,
) -> Result<reqwest::Client, GuardError> {
    let client = Rules::from_env(link_local).guard(client, url)?;
    Ok(client.build()?)
}

/// Looks at the addresses that URLs name themselves, which no resolver sees.
#[derive(Debug)]
struct GuardedClient {
    client: reqwest::Client,
    rules: Rules,
}

#[async_trait]
impl HttpService for GuardedClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let refused = |error| HttpError::new(HttpErrorKind::Unknown, error);
        // Parsed as the client will: it knows the odd forms of addresses.
        if let Ok(url) = Url::parse(&request.uri().to_string()) {
            self.rules.literal(&url).map_err(refused)?;
        }
        self.client.call(request).await
    }
}

/// Looks at the addresses of names, each time one is resolved.
struct GuardedNames(Rules);

impl Resolve for GuardedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            for address in &found {
                rules.permitted(name.as_str(), address.ip())?;
            }
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

impl Rules {
    /// Those of this process.
    pub fn from_env(link_local: LinkLocal) -> Self {
        Self {
            link_local,
            loopback: Loopback::from_env(),
        }
    }

    /// Refuses a URL whose host is an address that may not be reached.
    pub fn check(self, url: &str) -> Result<(), GuardError> {
        Ok(self.literal(&Url::parse(url)?)?)
    }

    /// A client for `url` that reaches nothing else either, whatever names lead to.
    fn guard(
        self,
        client: reqwest::ClientBuilder,
        url: &str,
    ) -> Result<reqwest::ClientBuilder, GuardError> {
        if self.allow_all() {
            return Ok(client);
        }
        self.check(url)?;
        Ok(client.dns_resolver(Arc::new(GuardedNames(self))))
    }

    /// Whether there is nothing to guard against.
    pub fn allow_all(self) -> bool {
        self.link_local == LinkLocal::Allowed && self.loopback == Loopback::Allowed
    }

    /// Refuses a URL whose host is an address that may not be reached.
    fn literal(self, url: &Url) -> Result<(), Forbidden> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        self.permitted(url.host_str().unwrap_or_default(), address)
    }

    fn permitted(self, host: &str, address: IpAddr) -> Result<(), Forbidden> {
        let reached = embedded(address).unwrap_or(address);
        let refused = |what, variable| {
            Err(Forbidden {
                host: host.to_owned(),
                address,
                what,
                variable,
            })
        };
        if self.link_local == LinkLocal::Blocked && is_link_local(reached) {
            return refused(
                "link-local or a metadata service of the machine",
                LINK_LOCAL_VARIABLE,
            );
        }
        if self.loopback == Loopback::Blocked && (is_own(address) || is_own(reached)) {
            return refused("this pod itself", LOOPBACK_VARIABLE);
        }
        Ok(())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    METADATA.contains(&address)
        || match address {
            IpAddr::V4(address) => address.is_link_local(),
            // The second range is that of Amazon's services of an instance.
            IpAddr::V6(address) => {
                address.is_unicast_link_local() || address.segments()[..2] == [0xfd00, 0x0ec2]
            }
        }
}

/// Whether it leads to this machine or pod: the unspecified addresses do, too.
fn is_own(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.octets()[0] == 0,
        IpAddr::V6(address) => address.is_loopback() || address.is_unspecified(),
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64 or 6to4.
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let segments = address.segments();
    let of = |high: u16, low: u16| {
        let bits = (u32::from(high) << 16) | u32::from(low);
        Some(IpAddr::V4(Ipv4Addr::from_bits(bits)))
    };
    match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => of(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => of(high, low),
        [0x2002, high, low, ..] => of(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use object_store::client::HttpRequestBody;

    use super::*;

    /// As outside of pods.
    const RULES: Rules = Rules {
        link_local: LinkLocal::Blocked,
        loopback: Loopback::Allowed,
    };

    fn check(url: &str, is_permitted: bool) {
        let url = Url::parse(url).unwrap();
        assert_eq!(RULES.literal(&url).is_ok(), is_permitted, "{url}");
    }

    #[test]
    fn a_pod_reaches_nothing_within_itself_in_any_form_unless_that_is_allowed() {
        let pod = Rules {
            link_local: LinkLocal::Allowed,
            loopback: Loopback::Blocked,
        };
        let literal = |host: &str, rules: Rules| {
            let url = Url::parse(&format!("http://{host}/v1")).unwrap();
            rules
                .literal(&url)
                .map_err(|forbidden| forbidden.to_string())
        };
        for host in [
            "127.0.0.1:8081",
            "127.8.8.8",
            "2130706433",
            "0x7f.1",
            "0.0.0.0",
            "0.1.2.3",
            "[::1]:8081",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
        ] {
            let refused = literal(host, pod).unwrap_err();
            assert!(refused.contains("MILLRACE_ALLOW_LOOPBACK"), "{refused}");
            let allowed = Rules {
                loopback: Loopback::Allowed,
                ..pod
            };
            assert_eq!(literal(host, allowed), Ok(()), "{host}");
        }
        for host in ["10.0.0.7", "169.254.170.23", "[fd00::7]", "api.example.com"] {
            assert_eq!(literal(host, pod), Ok(()), "{host}");
        }
        let rebound = pod.permitted("rebound.example", "127.0.0.1".parse().unwrap());
        assert!(rebound.is_err());
    }

    #[test]
    fn link_local_addresses_are_refused_in_every_form() {
        for host in [
            "169.254.169.254",
            "169.254.170.2:80",
            "2852039166",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "169.254.43518",
            "[fe80::1]",
            "[::ffff:169.254.169.254]",
            "[::169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:a9fe:a9fe::1]",
            "[fd00:ec2::254]",
            "[fd20:ce::254]",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            check(&format!("http://{host}/latest/meta-data"), false);
        }
    }

    #[test]
    fn other_addresses_and_names_are_permitted() {
        for host in [
            "10.0.0.7:9000",
            "127.0.0.1:7070",
            "[::1]:7070",
            "[fd00::7]",
            "s3.eu-central-1.amazonaws.com",
            "169.254.169.254.example.com",
        ] {
            check(&format!("http://{host}/bucket"), true);
        }
    }

    #[test]
    fn a_name_is_judged_by_every_address_behind_it() {
        let permits = |address: &str| RULES.permitted("rebound.example", address.parse().unwrap());
        assert!(permits("192.0.2.1").is_ok());
        let message = permits("169.254.169.254").unwrap_err().to_string();
        assert!(
            message.starts_with("rebound.example leads to 169.254.169.254"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_name_that_leads_into_the_pod_is_not_asked() {
        let app = axum::Router::new().fallback(|| async { "what is for the pod's own programs" });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let url = format!("http://localhost:{port}/v1");
        let asked = async |loopback| {
            let link_local = LinkLocal::Blocked;
            let rules = Rules {
                link_local,
                loopback,
            };
            let client = rules.guard(reqwest::Client::builder(), &url).unwrap();
            let client = client.no_proxy().build().unwrap();
            let api = client.get(&url).send().await.map(drop);
            let guard = Guard {
                rules,
                connect_timeout: Duration::from_secs(5),
                timeout: Duration::from_secs(5),
            };
            let client = guard.connect(&ClientOptions::new().with_allow_http(true));
            let request = http::Request::get(&url).body(HttpRequestBody::empty());
            let store = client.unwrap().execute(request.unwrap()).await.map(drop);
            let said = |error: &dyn std::error::Error| millrace_telemetry::chain(error);
            [
                api.map_err(|error| said(&error)),
                store.map_err(|error| said(&error)),
            ]
        };
        for answer in asked(Loopback::Allowed).await {
            assert_eq!(answer, Ok(()));
        }
        for answer in asked(Loopback::Blocked).await {
            let refused = answer.unwrap_err();
            assert!(refused.contains("MILLRACE_ALLOW_LOOPBACK"), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_redirect_to_a_link_local_address_is_not_followed() {
        let app = axum::Router::new().fallback(|| async {
            axum::response::Redirect::temporary("http://169.254.169.254/latest/meta-data")
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let guard = Guard {
            rules: RULES,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
        };
        let client = guard.connect(&ClientOptions::new().with_allow_http(true));
        let request = http::Request::get(format!("http://{address}/bucket"));
        let request = request.body(HttpRequestBody::empty()).unwrap();
        let error = client.unwrap().execute(request).await.unwrap_err();
        let message = millrace_telemetry::chain(&error);
        assert!(message.contains("link-local"), "{message}");
    }
}
