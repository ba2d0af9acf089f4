//! From texts to answers: the door, the tokenisers, the queue and back.
//!
//! Never runs a model and never tokenises on the async runtime: texts are encoded in chunks on
//! blocking threads, at most [`Inference::tokenize_threads`] at a time per priority, and each
//! chunk goes into the queue as soon as it is ready, so the engine starts on the first while the
//! others are still being encoded.

use std::{ops::Range, sync::Arc, time::Instant};

use futures::StreamExt;
use millrace_models::model::{Encoding, Model};
use millrace_protocol::row::{RowError, RowErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tracing::Span;

use crate::{
    answers::Answers,
    batcher::{Item, Priority},
    metrics::Metrics,
    queue::{DoorError, QueueHandle},
    trace,
    work::{Answer, Reply, Work},
};

/// Texts that one blocking thread encodes before others get their turn: a few milliseconds.
const CHUNK_TEXTS: usize = 32;

/// Everything that answers texts.
pub struct Inference {
    models: Arc<Vec<Model>>,
    queue: QueueHandle,
    tokenize_threads: usize,
    /// Permits of their own, so that a job's thousands of texts never delay an online text.
    online_tokenizers: Arc<Semaphore>,
    batch_tokenizers: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// Texts and the models to ask about them.
pub struct Question {
    /// The texts.
    pub texts: Vec<String>,
    /// Indices of the models, each asked about every text.
    pub models: Vec<usize>,
    /// Which questions run first.
    pub priority: Priority,
    /// Whether texts above a model's length are cut; otherwise they end as `TextTooLong`.
    pub truncate: bool,
    /// When the answers are of no use any more.
    pub deadline: Instant,
}

impl Inference {
    /// Joins models and queue.
    pub fn new(
        models: Arc<Vec<Model>>,
        queue: QueueHandle,
        tokenize_threads: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let tokenizers = || Arc::new(Semaphore::new(tokenize_threads));
        Self {
            models,
            queue,
            tokenize_threads,
            online_tokenizers: tokenizers(),
            batch_tokenizers: tokenizers(),
            metrics,
        }
    }

    /// The models, in the order of the service.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// Asks every model about every text: answer `text * models + model`, in that order.
    /// Dropping the future withdraws the texts that have not run yet.
    pub async fn ask(self: &Arc<Self>, question: Question) -> Result<Vec<Answer>, DoorError> {
        let mut coming = self.begin(question)?;
        let mut answers = Vec::new();
        while let Some(answer) = coming.next().await {
            answers.push(answer);
        }
        answers.sort_unstable_by_key(|answer| answer.slot);
        trace::note_tokens(answers.iter().map(|answer| answer.tokens).sum());
        Ok(answers)
    }

    /// Asks as [`Inference::ask`] does, for answers as they come.
    pub fn begin(self: &Arc<Self>, question: Question) -> Result<Answers, DoorError> {
        let Question {
            texts,
            models,
            priority,
            truncate,
            deadline,
        } = question;
        let slots = texts.len() * models.len();
        let permits = self.queue.enter(slots, priority)?;
        let (sender, receiver) = mpsc::channel(slots.max(1));
        let asked = Asked {
            priority,
            truncate,
            arrived: Instant::now(),
            deadline,
        };
        trace::note_rows(texts.len());
        let chunks = chunks(&Arc::new(texts), &models, permits, &sender);
        let inference = self.clone();
        let work = async move {
            let encode = |chunk| inference.encode(chunk, asked);
            let chunks = futures::stream::iter(chunks);
            chunks
                .for_each_concurrent(inference.tokenize_threads, encode)
                .await;
        };
        let work = AbortOnDropHandle::new(tokio::spawn(work));
        let queue = self.queue.clone();
        Ok(Answers::new(receiver, slots, deadline, queue, work))
    }

    /// Encodes a chunk on a blocking thread once one is free, and queues it. Owns all it needs,
    /// because a blocking thread outlives the question when that is dropped.
    fn encode(&self, chunk: Chunk, asked: Asked) -> impl Future<Output = ()> + Send + use<> {
        let tokenizers = match asked.priority {
            Priority::Online => self.online_tokenizers.clone(),
            Priority::Batch => self.batch_tokenizers.clone(),
        };
        let (models, queue) = (self.models.clone(), self.queue.clone());
        let metrics = self.metrics.clone();
        async move {
            let permit = tokenizers.acquire_owned().await;
            let encode = move || {
                let model = &models[chunk.model];
                let items = chunk.encode(model, asked, &metrics);
                queue.add_blocking(items);
                drop(permit);
            };
            if let Err(error) = tokio::task::spawn_blocking(encode).await {
                tracing::error!(%error, "a tokeniser panicked");
            }
        }
    }
}

/// The texts in pieces for the blocking threads; all models of the first texts come before the next.
fn chunks(
    texts: &Arc<Vec<String>>,
    models: &[usize],
    mut permits: OwnedSemaphorePermit,
    sender: &mpsc::Sender<Answer>,
) -> Vec<Chunk> {
    let mut chunks = Vec::with_capacity(texts.len().div_ceil(CHUNK_TEXTS) * models.len());
    for start in (0..texts.len()).step_by(CHUNK_TEXTS) {
        let range = start..texts.len().min(start + CHUNK_TEXTS);
        for (position, &model) in models.iter().enumerate() {
            let replies = range.clone().map(|index| {
                let permit = permits.split(1).expect("the door gave one permit per slot");
                Reply::new(sender.clone(), index * models.len() + position, permit)
            });
            chunks.push(Chunk {
                texts: texts.clone(),
                range: range.clone(),
                model,
                span: Span::current(),
                replies: replies.collect(),
            });
        }
    }
    chunks
}

/// What all chunks of a question share.
#[derive(Clone, Copy)]
struct Asked {
    priority: Priority,
    truncate: bool,
    arrived: Instant,
    deadline: Instant,
}

/// Texts that are encoded in one go for one model.
struct Chunk {
    texts: Arc<Vec<String>>,
    range: Range<usize>,
    model: usize,
    span: Span,
    replies: Vec<Reply>,
}

impl Chunk {
    /// Encodes the texts; those that cannot be are answered at once.
    fn encode(self, model: &Model, asked: Asked, metrics: &Metrics) -> Vec<Item<Work>> {
        let mut items = Vec::with_capacity(self.replies.len());
        for (index, reply) in self.range.zip(self.replies) {
            if reply.is_gone() {
                continue;
            }
            match encode(model, &self.texts[index], asked.truncate) {
                Ok(encoding) => items.push(Item {
                    model: self.model,
                    priority: asked.priority,
                    tokens: encoding.token_ids.len(),
                    arrived: asked.arrived,
                    deadline: asked.deadline,
                    payload: Work {
                        texts: self.texts.clone(),
                        index,
                        encoding,
                        span: self.span.clone(),
                        reply,
                    },
                }),
                Err(error) => {
                    metrics.note_row_error(error.code);
                    reply.refuse(error);
                }
            }
        }
        items
    }
}

fn encode(model: &Model, text: &str, truncate: bool) -> Result<Encoding, RowError> {
    let encoding = model.encode(text)?;
    if encoding.truncated && !truncate {
        let max = model.max_length();
        let message = format!("the text has more than {max} tokens; shorten it or set `truncate`");
        return Err(RowError::new(RowErrorCode::TextTooLong, message));
    }
    if encoding.token_ids.is_empty() {
        return Err(RowError::new(
            RowErrorCode::EmptyText,
            "the text has no tokens",
        ));
    }
    Ok(encoding)
}
