//! Counts tokens as the job's models will, without their weights.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millrace_crds::InferenceService;
use millrace_model_files::chunks::{Ruler, cut};
use millrace_model_files::folder::{FolderError, ModelFolder};
use millrace_model_files::tokenizer::{TextLimits, TextTokenizer};
use millrace_protocol::chunk::ChunkLimits;

use super::{Counted, TokenCounter};
use crate::job::Step;

/// Longer texts count as this many characters' worth, as the server would cut them anyway.
const TEXT_CHARS_MAX: usize = 1 << 20;

/// A counter of the tokens that all `steps` together compute for a text, which is cut into chunks within
/// these `limits`, if there are any. Texts that cannot be tokenised count as none: they end as row
/// errors.
pub fn token_counter(
    service: &InferenceService,
    steps: &[Step],
    limits: Option<ChunkLimits>,
    model_cache: &Path,
) -> Result<TokenCounter, FolderError> {
    let text_limits = TextLimits {
        text_chars_max: TEXT_CHARS_MAX,
        tokenize_deadline: Duration::from_secs(1),
    };
    let models = &service.spec.models;
    let of_steps = steps
        .iter()
        .filter_map(|step| models.iter().find(|m| m.name == step.model));
    // Models with the same tokens count the same, so the first of them counts for all.
    let mut tokenizers: Vec<(Arc<TextTokenizer>, usize)> = Vec::new();
    for model in of_steps {
        let tokenizer = ModelFolder::open(model, model_cache, text_limits)?.tokenizer;
        let same =
            |it: &&mut (Arc<TextTokenizer>, usize)| it.0.fingerprint() == tokenizer.fingerprint();
        match tokenizers.iter_mut().find(same) {
            Some((_, models)) => *models += 1,
            None => tokenizers.push((Arc::new(tokenizer), 1)),
        }
    }
    let rulers: Vec<_> = tokenizers.iter().map(|(it, _)| it.clone()).collect();
    let count = move |text: &str| -> Counted {
        let counts = tokenizers.iter().map(|(tokenizer, models)| {
            let Ok(encoding) = tokenizer.encode(text) else {
                return Counted::default();
            };
            Counted {
                tokens: encoding.token_ids.len() * models,
                is_cut: encoding.truncated,
            }
        });
        sum(counts)
    };
    let Some(limits) = limits else {
        return Ok(Arc::new(count));
    };
    Ok(Arc::new(move |text| {
        let rulers = rulers.iter().map(|ruler| ruler.as_ref() as &dyn Ruler);
        let chunks = cut(text, &limits, &rulers.collect::<Vec<_>>());
        let chunks = chunks.unwrap_or_default().into_iter();
        sum(chunks.map(|chunk| count(chunk.of(text))))
    }))
}

fn sum(counts: impl Iterator<Item = Counted>) -> Counted {
    counts.fold(Counted::default(), |all, one| Counted {
        tokens: all.tokens + one.tokens,
        is_cut: all.is_cut || one.is_cut,
    })
}
