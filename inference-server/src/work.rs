//! One text for one model on its way from a request through the queue to an engine thread and
//! back.

use std::sync::Arc;

use millrace_answers::Lead;
use millrace_models::model::Encoding;
use millrace_protocol::{
    row::{RowError, RowErrorCode},
    wire::Prediction,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::Span;

/// A tokenised text that waits for its model.
#[derive(Debug)]
pub struct Work {
    /// The texts of the request.
    pub texts: Arc<Vec<String>>,
    /// Index of this one.
    pub index: usize,
    /// The text as tokens, which all models share that take the same ones.
    pub encoding: Arc<Encoding>,
    /// The request's span, which its batch joins.
    pub span: Span,
    /// Where the answer goes.
    pub reply: Reply,
}

impl Work {
    /// The text itself; predictions of spans quote it.
    pub fn text(&self) -> &str {
        &self.texts[self.index]
    }
}

/// Where the answer of one slot of a request goes. Every reply sends exactly one answer: one that
/// is dropped unsent says that the model failed.
#[derive(Debug)]
pub struct Reply {
    sender: mpsc::Sender<Answer>,
    slot: usize,
    sent: bool,
    /// Who else learns the answer; dropped unsent, they learn that this text gave up.
    lead: Option<Lead>,
    /// Held from the door until the answer is there: the queue's bound counts these.
    _permit: OwnedSemaphorePermit,
}

/// The answer of one slot.
#[derive(Debug)]
pub struct Answer {
    /// Which slot of the request.
    pub slot: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Whether the answer was there before.
    pub cached: bool,
    /// What the model said, or why it said nothing.
    pub result: Result<Prediction, RowError>,
}

impl Reply {
    /// A reply for `slot`. The channel has room for one answer per slot of the request.
    pub fn new(sender: mpsc::Sender<Answer>, slot: usize, permit: OwnedSemaphorePermit) -> Self {
        Self {
            sender,
            slot,
            sent: false,
            lead: None,
            _permit: permit,
        }
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    /// Which slot of the request is answered.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Makes the answer known to whoever waits for the same.
    pub fn lead(&mut self, lead: Lead) {
        self.lead = Some(lead);
    }

    /// What others wait for, if they do.
    pub fn leads(&self) -> Option<&Lead> {
        self.lead.as_ref()
    }

    /// Sends the answer of a text that went through the model.
    pub fn send(mut self, tokens: usize, result: Result<Prediction, RowError>) {
        if let (Some(lead), Ok(prediction)) = (self.lead.take(), &result) {
            lead.computed(&Arc::new(prediction.clone()));
        }
        self.deliver(tokens, false, result);
    }

    /// Sends an answer that was there before.
    pub fn recall(mut self, prediction: &Arc<Prediction>) {
        if let Some(lead) = self.lead.take() {
            lead.found(prediction);
        }
        self.deliver(0, true, Ok(Prediction::clone(prediction)));
    }

    /// Sends the answer of a text that never reached the model.
    pub fn refuse(mut self, error: RowError) {
        self.deliver(0, false, Err(error));
    }

    fn deliver(&mut self, tokens: usize, cached: bool, result: Result<Prediction, RowError>) {
        self.sent = true;
        // The channel has a place for each slot, so sending fails only where nobody listens.
        let _ = self.sender.try_send(Answer {
            slot: self.slot,
            tokens,
            cached,
            result,
        });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            let message = "the server gave the text up before its model could run";
            self.deliver(
                0,
                false,
                Err(RowError::new(RowErrorCode::ModelFailed, message)),
            );
        }
    }
}
