//! Uploads that were begun and never ended, as those of a worker that was killed. No reader sees anything of
//! them, but S3 keeps their pieces, and charges for them, until someone aborts them.

use std::{sync::Arc, time::Duration};

use object_store::{
    Error,
    aws::AmazonS3,
    client::{HttpClient, HttpRequestBody},
    multipart::MultipartStore,
    path::Path,
    signer::{SignedUrlOptions, Signer},
};
use serde::Deserialize;

use super::StoreError;

/// How long a signed request may be on its way.
const SIGNED_FOR: Duration = Duration::from_secs(60);
/// Most pages of a listing that are gone through, each of up to 1,000 uploads: a store may go on to list what
/// was aborted.
const PAGES_MAX: usize = 100;

/// The open uploads of a bucket.
#[derive(Debug, Clone)]
pub struct Uploads {
    bucket: Arc<AmazonS3>,
    /// Asks what the client of the bucket cannot: the listing of uploads.
    client: HttpClient,
}

/// A page of `ListMultipartUploads`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default, rename = "Upload")]
    uploads: Vec<Begun>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Begun {
    key: String,
    upload_id: String,
}

impl Uploads {
    pub(super) fn new(bucket: Arc<AmazonS3>, client: HttpClient) -> Self {
        Self { bucket, client }
    }

    /// Aborts every upload of an object whose path begins with `prefix`; says how many there were.
    pub async fn abort(&self, prefix: &Path) -> Result<usize, StoreError> {
        let failed = |source| StoreError::at(prefix, source);
        let mut aborted = 0;
        for _ in 0..PAGES_MAX {
            let Page {
                is_truncated,
                uploads,
            } = self.list(prefix).await.map_err(failed)?;
            // Not every store heeds the prefix, and those of others must go on.
            let ours = uploads
                .iter()
                .filter(|begun| begun.key.starts_with(prefix.as_ref()));
            let before = aborted;
            for Begun { key, upload_id } in ours {
                let path = Path::parse(key).map_err(|error| failed(error.into()))?;
                match self.bucket.abort_multipart(&path, upload_id).await {
                    // Whoever began it may have ended it meanwhile.
                    Ok(()) | Err(Error::NotFound { .. }) => aborted += 1,
                    Err(error) => return Err(failed(error)),
                }
            }
            if !is_truncated || aborted == before {
                break;
            }
        }
        Ok(aborted)
    }

    async fn list(&self, prefix: &Path) -> Result<Page, Error> {
        let query = [("uploads", ""), ("prefix", prefix.as_ref())];
        let options = SignedUrlOptions::new().with_query(query);
        let (get, root) = (http::Method::GET, Path::default());
        let url = self
            .bucket
            .signed_url_opts(get, &root, SIGNED_FOR, &options)
            .await?;
        let request = http::Request::get(url.as_str()).body(HttpRequestBody::empty());
        let request = request.map_err(generic)?;
        let response = self.client.execute(request).await.map_err(generic)?;
        let status = response.status();
        if status == http::StatusCode::FORBIDDEN {
            return Err(Error::PermissionDenied {
                path: prefix.to_string(),
                source: "s3:ListBucketMultipartUploads is not allowed".into(),
            });
        }
        let body = response.into_body().bytes().await.map_err(generic)?;
        match status.is_success() {
            true => page(&body),
            false => Err(generic(format!("the listing of uploads: {status}"))),
        }
    }
}

fn page(body: &[u8]) -> Result<Page, Error> {
    quick_xml::de::from_reader(body).map_err(generic)
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic {
        store: "S3",
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_uploads_is_read_with_or_without_any() {
        let none = br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Bucket>bucket</Bucket><KeyMarker/><IsTruncated>false</IsTruncated>
            </ListMultipartUploadsResult>"#;
        assert_eq!(page(none).unwrap(), Page::default());
        let two = br#"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>
            <Upload><Key>out/a&amp;b</Key><UploadId>1</UploadId><Initiator><ID>x</ID></Initiator></Upload>
            <Upload><Key>out/c</Key><UploadId>2</UploadId></Upload>
            </ListMultipartUploadsResult>"#;
        let begun = |key: &str, upload_id: &str| Begun {
            key: key.to_owned(),
            upload_id: upload_id.to_owned(),
        };
        let expected = Page {
            is_truncated: true,
            uploads: vec![begun("out/a&b", "1"), begun("out/c", "2")],
        };
        assert_eq!(page(two).unwrap(), expected);
    }
}
