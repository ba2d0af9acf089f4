//! Many texts by several models in one pass, whole or as a stream. A text that cannot be answered
//! is an error in its place, never the end of the request.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::Stream;
use millrace_protocol::wire::{Prediction, Untagged};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    answers::Answers,
    http::{
        app::{App, find_model},
        body,
        error::{ApiError, ErrorBody},
        online::Asked,
    },
    inference::{Inference, Question},
    work::Answer,
};

/// Every model of the pod, many texts.
pub const ANALYZE: &str = "/analyze/batch";
/// Every model of the pod, as many texts as any online request may have.
pub const BATCH_ANALYZE: &str = "/batch-analyze";
/// Every model of the pod, each text's answer as soon as it is there.
pub const STREAM_ANALYZE: &str = "/stream-analyze";
/// The model of that name.
pub const ONE_MODEL: &str = "/{model}/batch";

/// Most texts in a request that asks all models.
const ANALYZE_ITEMS_MAX: usize = 100;
/// Most texts in a request that asks one model.
const ONE_MODEL_ITEMS_MAX: usize = 200;

#[derive(Debug, Deserialize)]
struct AnalyzeBody {
    texts: Vec<String>,
    models: Option<Vec<String>>,
    truncate: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct OneModelBody {
    texts: Vec<String>,
    truncate: Option<bool>,
}

/// `{"texts": [text, …]}` → `{"results": [{model: prediction, …}, …], "totals"}`.
pub async fn analyze(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Reply<Row>>, ApiError> {
    whole(&app, request, ANALYZE_ITEMS_MAX).await
}

/// As [`analyze`], with the bound that other online requests have.
pub async fn batch_analyze(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Reply<Row>>, ApiError> {
    whole(&app, request, app.limits.client_batch_items_max).await
}

/// As [`analyze`], for one model: `{"results": [prediction, …], "totals"}`.
pub async fn one_model(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
    request: Request<Body>,
) -> Result<Json<Reply<Slot>>, ApiError> {
    let inference = app.inference()?;
    let _slot = app.online_slot()?;
    let model = find_model(inference.models(), &model)?;
    let OneModelBody { texts, truncate } = body::online(request, &app.limits).await?;
    let asked = Asked {
        models: vec![model],
        texts,
        truncate,
    };
    let answers = inference
        .ask(asked.question(&app, ONE_MODEL_ITEMS_MAX)?)
        .await?;
    let mut totals = Totals::default();
    let results = answers.into_iter().map(|answer| {
        let slot = totals.take(answer);
        totals.end_text(slot.is_ok());
        slot
    });
    Ok(Json(Reply {
        results: results.collect(),
        totals,
    }))
}

/// As [`analyze`], as server-sent events: one `result` for each text, in the order in which they
/// are ready, then one `totals`.
pub async fn stream_analyze(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let inference = app.inference()?;
    let slot = app.online_slot()?;
    let (question, names) = read(&app, &inference, request, ANALYZE_ITEMS_MAX).await?;
    let rows = (0..question.texts.len())
        .map(|_| Row::new(&names))
        .collect();
    let streaming = Streaming {
        answers: inference.begin(question)?,
        rows,
        totals: Some(Totals::default()),
        _slot: slot,
    };
    let events = futures::stream::unfold(streaming, |mut streaming: Streaming| async move {
        let event = streaming.next_event().await?;
        Some((Ok(event), streaming))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn whole(
    app: &App,
    request: Request<Body>,
    items_max: usize,
) -> Result<Json<Reply<Row>>, ApiError> {
    let inference = app.inference()?;
    let _slot = app.online_slot()?;
    let (question, names) = read(app, &inference, request, items_max).await?;
    let texts = question.texts.len();
    let mut answers = VecDeque::from(inference.ask(question).await?);
    let mut totals = Totals::default();
    let results = (0..texts).map(|_| {
        let mut row = Row::new(&names);
        for answer in answers.drain(..names.len()) {
            row.put(answer, &mut totals);
        }
        row
    });
    Ok(Json(Reply {
        results: results.collect(),
        totals,
    }))
}

/// The question of a request and the names of the models it asks.
async fn read(
    app: &App,
    inference: &Inference,
    request: Request<Body>,
    items_max: usize,
) -> Result<(Question, Arc<[String]>), ApiError> {
    let AnalyzeBody {
        texts,
        models,
        truncate,
    } = body::online(request, &app.limits).await?;
    let all = inference.models();
    let models = match models {
        None => (0..all.len()).collect(),
        Some(names) => {
            let mut models = Vec::with_capacity(all.len());
            for name in names {
                let model = find_model(all, &name)?;
                if models.contains(&model) {
                    let message = format!("`models` names {name:?} twice; name it once");
                    return Err(ApiError::Invalid(message));
                }
                models.push(model);
            }
            models
        }
    };
    if models.is_empty() {
        let message = "`models` is empty; name models or leave it out to ask all";
        return Err(ApiError::Invalid(message.into()));
    }
    let names = models.iter().map(|&model| all[model].name().to_owned());
    let names = names.collect();
    let asked = Asked {
        models,
        texts,
        truncate,
    };
    Ok((asked.question(app, items_max)?, names))
}

/// What a request is answered.
#[derive(Serialize)]
pub struct Reply<T> {
    results: Vec<T>,
    totals: Totals,
}

/// What became of the texts of a request.
#[derive(Debug, Default, Serialize)]
pub struct Totals {
    texts: usize,
    /// Texts that every model answered.
    succeeded: usize,
    failed: usize,
    /// Tokens that went through models.
    tokens: usize,
    /// Answers that were there before.
    cached: usize,
}

impl Totals {
    fn take(&mut self, answer: Answer) -> Slot {
        self.tokens += answer.tokens;
        self.cached += usize::from(answer.cached);
        match answer.result {
            Ok(prediction) => Slot::Answered(prediction),
            Err(error) => Slot::Failed(error.into()),
        }
    }

    fn end_text(&mut self, succeeded: bool) {
        self.texts += 1;
        match succeeded {
            true => self.succeeded += 1,
            false => self.failed += 1,
        }
    }
}

/// What one model said of one text, or why it said nothing.
pub enum Slot {
    Answered(Prediction),
    Failed(ErrorBody),
}

impl Slot {
    fn is_ok(&self) -> bool {
        matches!(self, Slot::Answered(_))
    }
}

impl Serialize for Slot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Slot::Answered(prediction) => Untagged(prediction).serialize(serializer),
            Slot::Failed(error) => error.serialize(serializer),
        }
    }
}

/// What all models say of one text: an object with one entry for each.
pub struct Row {
    names: Arc<[String]>,
    slots: Vec<Option<Slot>>,
}

impl Row {
    fn new(names: &Arc<[String]>) -> Self {
        Self {
            names: names.clone(),
            slots: names.iter().map(|_| None).collect(),
        }
    }

    /// Takes an answer; says whether it was the last.
    fn put(&mut self, answer: Answer, totals: &mut Totals) -> bool {
        let place = answer.slot % self.names.len();
        self.slots[place] = Some(totals.take(answer));
        let complete = self.slots.iter().all(Option::is_some);
        if complete {
            totals.end_text(self.slots.iter().flatten().all(Slot::is_ok));
        }
        complete
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.names.len()))?;
        for (name, slot) in self.names.iter().zip(&self.slots) {
            map.serialize_entry(name, slot)?;
        }
        map.end()
    }
}

/// A request that is answered as a stream.
struct Streaming {
    answers: Answers,
    rows: Vec<Row>,
    /// Gone once they are sent.
    totals: Option<Totals>,
    /// A stream counts as a request until its end.
    _slot: OwnedSemaphorePermit,
}

#[derive(Serialize)]
struct StreamedRow {
    /// Which text of the request.
    index: usize,
    result: Row,
}

impl Streaming {
    async fn next_event(&mut self) -> Option<Event> {
        while let Some(answer) = self.answers.next().await {
            let totals = self.totals.as_mut()?;
            let row = self.rows.first()?;
            let index = answer.slot / row.names.len();
            if self.rows[index].put(answer, totals) {
                let names = self.rows[index].names.clone();
                // What is sent is not kept for the rest of the stream.
                let result = std::mem::replace(&mut self.rows[index], Row::new(&names));
                return Some(event("result", &StreamedRow { index, result }));
            }
        }
        self.totals.take().map(|totals| event("totals", &totals))
    }
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    event
        .json_data(data)
        .expect("an answer always has a JSON form")
}
