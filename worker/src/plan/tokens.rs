//! Counts tokens as the job's models will, without their weights.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millrace_crds::InferenceService;
use millrace_model_files::folder::{FolderError, ModelFolder};
use millrace_model_files::tokenizer::TextLimits;

use super::TokenCounter;
use crate::job::Step;

/// Longer texts count as this many characters' worth, as the server would cut them anyway.
const TEXT_CHARS_MAX: usize = 1 << 20;

/// A counter of the tokens that all `steps` together compute for a text. Texts that cannot be
/// tokenised count as none: they end as row errors.
pub fn token_counter(
    service: &InferenceService,
    steps: &[Step],
    model_cache: &Path,
) -> Result<TokenCounter, FolderError> {
    let limits = TextLimits {
        text_chars_max: TEXT_CHARS_MAX,
        tokenize_deadline: Duration::from_secs(1),
    };
    let models = &service.spec.models;
    let of_steps = steps
        .iter()
        .filter_map(|step| models.iter().find(|m| m.name == step.model));
    let open = |model| Ok(ModelFolder::open(model, model_cache, limits)?.tokenizer);
    let tokenizers = of_steps
        .map(open)
        .collect::<Result<Vec<_>, FolderError>>()?;
    Ok(Arc::new(move |text| {
        let counts = tokenizers.iter().map(|tokenizer| tokenizer.encode(text));
        counts
            .map(|encoded| encoded.map_or(0, |encoding| encoding.token_ids.len()))
            .sum()
    }))
}
