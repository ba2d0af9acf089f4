//! Models of a local run that lie on S3: they are fetched into the model cache, where the server
//! finds them, so that one manifest serves a cluster and a laptop.

use std::path::PathBuf;

use anyhow::Context;
use millrace_crds::InferenceService;
use millrace_model_files::folder::default_model_cache;
use millrace_worker::models;
use millrace_worker::store::Stores;
use sha2::{Digest, Sha256};

/// Folder of the model cache for what came from S3.
const S3: &str = "s3";

/// The service with sources that this machine has. What was fetched before is verified and kept.
pub async fn fetched(
    stores: &Stores,
    service: &InferenceService,
) -> anyhow::Result<InferenceService> {
    let mut fetched = service.clone();
    for (index, model) in fetched.spec.models.iter_mut().enumerate() {
        if !model.source.uri.starts_with("s3://") {
            continue;
        }
        let folder = folder_of(&model.source.uri);
        eprintln!("model {}: {}", model.name, model.source.uri);
        let place = models::fetch(stores, index, model, &folder)
            .await
            .with_context(|| format!("model {} cannot be fetched", model.name))?;
        model.source.uri = format!("file://{}", place.display());
    }
    Ok(fetched)
}

/// A folder of its own for each source: two of them may hold models of one name.
fn folder_of(uri: &str) -> PathBuf {
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(uri)[..8]);
    default_model_cache().join(S3).join(hash)
}
