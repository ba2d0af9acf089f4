//! Who may look at a job: whoever the API server knows by a bearer token, and lets get the object.
//!
//! What the API server says is kept for some seconds, by the hash of the token: no token is kept. Reviews
//! are bounded, so that whoever guesses keeps this process busy and not the API server.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long an answer counts.
const ANSWER_TTL: Duration = Duration::from_secs(10);

/// Answers of each kind that are kept at a time.
const ANSWERS_MAX: u64 = 4_096;

/// Reviews under way at a time.
const REVIEWS_MAX: usize = 16;

/// Longest that a review may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a token. Those of service accounts have about a thousand.
const TOKEN_BYTES_MAX: usize = 16 << 10;

type Hash = [u8; 32];

/// A job as it is asked for. Without a name and a namespace, any of the cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct Object<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// Why somebody may not look.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// Nobody is known by this token.
    #[error("bring a token that the API server knows: Authorization: Bearer TOKEN")]
    Unknown,
    /// Whoever asks may not read the object, whether or not it is there.
    #[error("whoever asks has no right to get this batchjob, or there is none")]
    Forbidden,
    /// Too many ask at a time.
    #[error("too many ask at a time; ask again in a moment")]
    Busy,
    /// The API server gives no answer.
    #[error("the API server does not say who may look")]
    Away(#[source] kube::Error),
    /// The API server takes too long.
    #[error("the API server takes too long to say who may look")]
    Slow,
}

/// Asks the API server who may look, and remembers its answers for a while.
pub struct Access {
    client: Client,
    /// Who is known by a token.
    users: moka::sync::Cache<Hash, Option<Arc<UserInfo>>>,
    /// Whether the token's user may get an object.
    rights: moka::sync::Cache<Hash, bool>,
    reviews: Semaphore,
}

impl Access {
    /// Asks nothing yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            users: kept(),
            rights: kept(),
            reviews: Semaphore::new(REVIEWS_MAX),
        }
    }

    /// Lets whoever brings the token look at the object.
    pub async fn admit(&self, token: &[u8], object: Object<'_>) -> Result<(), Denied> {
        let user = self.user(token).await?.ok_or(Denied::Unknown)?;
        match self.may_get(token, &user, object).await? {
            true => Ok(()),
            false => Err(Denied::Forbidden),
        }
    }

    async fn user(&self, token: &[u8]) -> Result<Option<Arc<UserInfo>>, Denied> {
        let Some(text) = text(token) else {
            return Ok(None);
        };
        let key = hash(&[token]);
        if let Some(known) = self.users.get(&key) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: text.to_owned(),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let status = self.review(&review).await?.status.unwrap_or_default();
        let is_known = status.authenticated == Some(true);
        let user = status.user.filter(|_| is_known).map(Arc::new);
        self.users.insert(key, user.clone());
        Ok(user)
    }

    async fn may_get(
        &self,
        token: &[u8],
        user: &UserInfo,
        object: Object<'_>,
    ) -> Result<bool, Denied> {
        let Object { namespace, name } = object;
        let key = hash(&[token, namespace.as_bytes(), name.as_bytes()]);
        if let Some(known) = self.rights.get(&key) {
            return Ok(known);
        }
        let UserInfo {
            username,
            uid,
            groups,
            extra,
        } = user.clone();
        let named = |word: &str| Some(word.to_owned()).filter(|word| !word.is_empty());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: username,
                uid,
                groups,
                extra,
                resource_attributes: Some(ResourceAttributes {
                    verb: Some("get".to_owned()),
                    group: Some("millrace.dev".to_owned()),
                    resource: Some("batchjobs".to_owned()),
                    namespace: named(namespace),
                    name: named(name),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let status = self.review(&review).await?.status.unwrap_or_default();
        self.rights.insert(key, status.allowed);
        Ok(status.allowed)
    }

    async fn review<K>(&self, review: &K) -> Result<K, Denied>
    where
        K: kube::Resource<DynamicType = ()>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let _permit: SemaphorePermit = self.reviews.try_acquire().map_err(|_| Denied::Busy)?;
        let api: Api<K> = Api::all(self.client.clone());
        let params = PostParams::default();
        let asked = api.create(&params, review);
        match tokio::time::timeout(REVIEW_TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(Denied::Away),
            Err(_) => Err(Denied::Slow),
        }
    }
}

fn kept<V: Clone + Send + Sync + 'static>() -> moka::sync::Cache<Hash, V> {
    moka::sync::Cache::builder()
        .max_capacity(ANSWERS_MAX)
        .time_to_live(ANSWER_TTL)
        .build()
}

/// What may be a token at all.
fn text(token: &[u8]) -> Option<&str> {
    let token = std::str::from_utf8(token).ok()?;
    (1..=TOKEN_BYTES_MAX)
        .contains(&token.len())
        .then_some(token)
}

/// Lengths stand before the parts, so that no two lists of parts run together.
fn hash(parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
