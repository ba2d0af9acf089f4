//! From texts to answers: the cache, the door, the tokenisers, the queue and back.
//!
//! Never runs a model and never tokenises on the async runtime: texts are encoded in chunks on
//! blocking threads, at most [`Inference::tokenize_threads`] at a time per priority, and each
//! chunk goes into the queue as soon as it is ready, so the engine starts on the first while the
//! others are still being encoded. Models whose tokens are the same share them: a text is encoded once
//! for all of them.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use futures::StreamExt;
use millrace_answers::{Cache, Keys, Lead, Role};
use millrace_models::model::{Encoding, Model};
use millrace_protocol::{
    row::{RowError, RowErrorCode},
    wire::Prediction,
};
use tokio::sync::{Semaphore, mpsc};
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
    cache: Option<Arc<Cache>>,
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
    /// Joins models and queue, with a cache before them or none.
    pub fn new(
        models: Arc<Vec<Model>>,
        queue: QueueHandle,
        tokenize_threads: usize,
        cache: Option<Arc<Cache>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let tokenizers = || Arc::new(Semaphore::new(tokenize_threads));
        Self {
            models,
            queue,
            tokenize_threads,
            online_tokenizers: tokenizers(),
            batch_tokenizers: tokenizers(),
            cache,
            metrics,
        }
    }

    /// The models, in the order of the service.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// For each of `models` the one of them that tokenises for it. Of those whose tokens are the same it is
    /// one with spans, if any has them: spans cost time, and do not hurt whoever needs none.
    pub fn tokenizers(&self, models: &[usize]) -> Vec<usize> {
        let same = |model: usize| {
            let fingerprint = self.models[model].tokens_fingerprint();
            let others = models.iter().copied();
            others.filter(move |&other| self.models[other].tokens_fingerprint() == fingerprint)
        };
        let tokenizer = |&model: &usize| {
            let best = same(model).max_by_key(|&other| self.models[other].has_spans());
            best.expect("a model has its own tokens")
        };
        models.iter().map(tokenizer).collect()
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
        trace::note_rows(texts.len());
        let slots = texts.len() * models.len();
        let (sender, receiver) = mpsc::channel(slots.max(1));
        let asked = Arc::new(Asked {
            texts: Arc::new(texts),
            tokenizers: self.tokenizers(&models),
            models,
            priority,
            truncate,
            arrived: Instant::now(),
            deadline,
            span: Span::current(),
        });
        // A job's texts are hashed later, off the async runtime: they may be many megabytes.
        let cache = self.cache.as_ref();
        let keys = cache
            .filter(|_| priority == Priority::Online)
            .map(|_| self.keys(&asked));
        let recall = |slot| cache?.get(&keys.as_ref()?.get(slot));
        let known = (0..slots).map(recall).collect::<Vec<_>>();
        let open = known.iter().filter(|known| known.is_none()).count();
        let mut permits = self.queue.enter(open, priority)?;
        let mut replies = Vec::with_capacity(open);
        for (slot, known) in known.into_iter().enumerate() {
            match known {
                Some(known) => answer_at_once(&sender, slot, &known),
                None => {
                    let permit = permits.split(1).expect("the door gave one for each");
                    replies.push(Reply::new(sender.clone(), slot, permit));
                }
            }
        }
        let work = (open > 0).then(|| {
            let work = self.clone().work(asked, keys, replies);
            AbortOnDropHandle::new(tokio::spawn(work))
        });
        let queue = self.queue.clone();
        Ok(Answers::new(receiver, slots, deadline, queue, work))
    }

    /// Computes something of a job's texts with their tokenisers, on a thread that may block, once one is
    /// free. Nothing if it panicked.
    pub async fn on_tokenizer_thread<T: Send + 'static>(
        self: &Arc<Self>,
        compute: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let permit = self.batch_tokenizers.clone().acquire_owned().await;
        let inference = self.clone();
        let computing = tokio::task::spawn_blocking(move || {
            let computed = compute(&inference);
            drop(permit);
            computed
        });
        computing.await.ok()
    }

    /// Answers what the cache knows, brings the rest into the queue, and waits for whoever computes
    /// the same already.
    async fn work(self: Arc<Self>, asked: Arc<Asked>, keys: Option<Keys>, replies: Vec<Reply>) {
        let Some(cache) = &self.cache else {
            return self.tokenize(&asked, replies).await;
        };
        let (keys, replies) = match keys {
            Some(keys) => (keys, replies),
            None => match self.recall(cache, &asked, replies).await {
                Some(left) => left,
                None => return,
            },
        };
        let mut leading = Vec::with_capacity(replies.len());
        let mut following = Vec::new();
        for mut reply in replies {
            match cache.join(keys.get(reply.slot()), asked.priority) {
                Role::Known(known) => reply.recall(&known),
                Role::Lead(lead) => {
                    reply.lead(lead);
                    leading.push(reply);
                }
                Role::Follow(coming) => following.push((reply, coming)),
            }
        }
        let lead = async {
            let left = recall_slower(cache, leading).await;
            self.tokenize(&asked, left).await;
        };
        let follow = async {
            let following = following.into_iter().map(|(reply, coming)| async move {
                match coming.await {
                    Ok(known) => {
                        reply.recall(&known);
                        None
                    }
                    // Whoever led gave up, for a reason of their own perhaps.
                    Err(_) => Some(reply),
                }
            });
            let left = futures::future::join_all(following).await;
            self.tokenize(&asked, left.into_iter().flatten().collect())
                .await;
        };
        futures::future::join(lead, follow).await;
    }

    /// Hashes the texts and answers what this process knows, on a thread that may block. Leaves the
    /// others; nothing if the thread panicked, which each dropped reply says.
    async fn recall(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        asked: &Arc<Asked>,
        replies: Vec<Reply>,
    ) -> Option<(Keys, Vec<Reply>)> {
        let (inference, cache, asked) = (self.clone(), cache.clone(), asked.clone());
        let recalling = tokio::task::spawn_blocking(move || {
            let keys = inference.keys(&asked);
            let mut left = Vec::with_capacity(replies.len());
            for reply in replies {
                match cache.get(&keys.get(reply.slot())) {
                    Some(known) => reply.recall(&known),
                    None => left.push(reply),
                }
            }
            (keys, left)
        });
        let recalled = recalling.await;
        recalled
            .inspect_err(|_| tracing::error!("hashing texts panicked"))
            .ok()
    }

    fn keys(&self, asked: &Asked) -> Keys {
        let models = asked.models.iter();
        let fingerprints = models.map(|&model| self.models[model].fingerprint());
        Keys::new(
            &fingerprints.collect::<Vec<_>>(),
            asked.truncate,
            &asked.texts,
        )
    }

    /// Encodes the texts of the replies and queues them.
    async fn tokenize(&self, asked: &Arc<Asked>, replies: Vec<Reply>) {
        let chunks = futures::stream::iter(chunks(asked, replies));
        chunks
            .for_each_concurrent(self.tokenize_threads, |chunk| self.encode(chunk))
            .await;
    }

    /// Encodes a chunk on a blocking thread once one is free, and queues it. Owns all it needs,
    /// because a blocking thread outlives the question when that is dropped.
    fn encode(&self, chunk: Chunk) -> impl Future<Output = ()> + Send + use<> {
        let tokenizers = match chunk.asked.priority {
            Priority::Online => self.online_tokenizers.clone(),
            Priority::Batch => self.batch_tokenizers.clone(),
        };
        let (models, queue) = (self.models.clone(), self.queue.clone());
        let metrics = self.metrics.clone();
        async move {
            let permit = tokenizers.acquire_owned().await;
            let encode = move || {
                let tokenizer = &models[chunk.tokenizer];
                queue.add_blocking(chunk.encode(tokenizer, &metrics));
                drop(permit);
            };
            if tokio::task::spawn_blocking(encode).await.is_err() {
                tracing::error!("queueing texts panicked");
            }
        }
    }
}

/// Answers a slot without a place in the queue, since nothing waits.
fn answer_at_once(sender: &mpsc::Sender<Answer>, slot: usize, known: &Arc<Prediction>) {
    let answer = Answer {
        slot,
        tokens: 0,
        cached: true,
        result: Ok(Prediction::clone(known)),
    };
    sender
        .try_send(answer)
        .expect("the channel has a place for each slot");
}

/// Answers what the disk and Redis know; leaves the others.
async fn recall_slower(cache: &Cache, leading: Vec<Reply>) -> Vec<Reply> {
    let keys = leading.iter().filter_map(Reply::leads).map(Lead::key);
    let found = cache.get_slower(&keys.collect::<Vec<_>>()).await;
    let mut left = Vec::with_capacity(leading.len());
    for (reply, found) in leading.into_iter().zip(found) {
        match found {
            Some(found) => reply.recall(&found),
            None => left.push(reply),
        }
    }
    left
}

/// The texts in pieces for the blocking threads; all models of the first texts come before the
/// next. Replies come in the order of their slots.
fn chunks(asked: &Arc<Asked>, replies: Vec<Reply>) -> Vec<Chunk> {
    let models = asked.models.len();
    let mut chunks = Vec::new();
    let mut replies = replies.into_iter().peekable();
    while let Some(first) = replies.peek() {
        let end = (first.slot() / models + CHUNK_TEXTS) * models;
        let mut of_tokenizers = BTreeMap::<usize, Vec<Reply>>::new();
        while let Some(reply) = replies.next_if(|reply| reply.slot() < end) {
            let tokenizer = asked.tokenizers[reply.slot() % models];
            of_tokenizers.entry(tokenizer).or_default().push(reply);
        }
        let chunk = |(tokenizer, replies)| Chunk {
            asked: asked.clone(),
            tokenizer,
            replies,
        };
        chunks.extend(of_tokenizers.into_iter().map(chunk));
    }
    chunks
}

/// What all chunks of a question share.
struct Asked {
    texts: Arc<Vec<String>>,
    models: Vec<usize>,
    /// For each model the one that tokenises for it.
    tokenizers: Vec<usize>,
    priority: Priority,
    truncate: bool,
    arrived: Instant,
    deadline: Instant,
    span: Span,
}

/// Texts that are encoded in one go for all models that take the same tokens.
struct Chunk {
    asked: Arc<Asked>,
    /// The model that tokenises for all of them.
    tokenizer: usize,
    /// In the order of their slots, so those of one text stand together.
    replies: Vec<Reply>,
}

impl Chunk {
    /// Encodes the texts; those that cannot be are answered at once.
    fn encode(self, tokenizer: &Model, metrics: &Metrics) -> Vec<Item<Work>> {
        let asked = &self.asked;
        let mut last: Option<(usize, Result<Arc<Encoding>, RowError>)> = None;
        let mut items = Vec::with_capacity(self.replies.len());
        for reply in self.replies {
            if reply.is_gone() {
                continue;
            }
            let (index, model) = (
                reply.slot() / asked.models.len(),
                asked.models[reply.slot() % asked.models.len()],
            );
            let encoded = match &last {
                Some((of, encoded)) if *of == index => encoded.clone(),
                _ => {
                    metrics.tokenized_texts.inc();
                    let encoded = encode(tokenizer, &asked.texts[index], asked.truncate);
                    last.insert((index, encoded.map(Arc::new))).1.clone()
                }
            };
            match encoded {
                Ok(encoding) => items.push(Item {
                    model,
                    priority: asked.priority,
                    tokens: encoding.token_ids.len(),
                    arrived: asked.arrived,
                    deadline: asked.deadline,
                    payload: Work {
                        texts: asked.texts.clone(),
                        index,
                        encoding,
                        span: asked.span.clone(),
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

/// Does with one text what its tokeniser is needed for; a text that it panics on costs no other.
pub(crate) fn guarded<T>(tokenize: impl FnOnce() -> Result<T, RowError>) -> Result<T, RowError> {
    let done = catch_unwind(AssertUnwindSafe(tokenize));
    done.unwrap_or_else(|_| {
        let message = "the tokenizer failed on the text";
        Err(RowError::new(RowErrorCode::TokenizeFailed, message))
    })
}

/// Tokenises a text.
fn encode(model: &Model, text: &str, truncate: bool) -> Result<Encoding, RowError> {
    let encoding = guarded(|| model.encode(text))?;
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
