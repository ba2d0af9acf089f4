//! What receivers are told when a job is over: a CloudEvent 1.0, in its structured form.

use serde::{Deserialize, Serialize};

use crate::plan::RunNumber;
use crate::tally::Rows;

/// The media type of a CloudEvent in JSON.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";

/// A job is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    specversion: String,
    /// The same for everything that is sent about one end, so that receivers can drop what repeats.
    pub id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    datacontenttype: String,
    data: Over,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Over {
    /// Namespace of the job.
    pub namespace: String,
    /// Name of the job.
    pub name: String,
    /// The run that ended.
    pub run: RunNumber,
    /// Why, in one word: that of the condition `Succeeded` in a cluster.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// Where the results are.
    pub output: String,
    /// What finish counted; absent where nothing was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// The table that all results were loaded into, if the job names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<String>,
}

/// What finish counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Rows by how they ended.
    pub rows: Rows,
    /// Tokens that went through models.
    pub tokens: u64,
    /// Shards that were given up.
    pub failed_shards: u32,
}

/// The reason of a job whose every shard is committed.
pub const COMPLETED: &str = "Completed";

impl Event {
    /// The event of an end. `once` tells it from the ends of other jobs of that name, such as by the id
    /// of the job's object.
    pub fn of(data: Over, once: &str) -> Self {
        let Over {
            namespace,
            name,
            run,
            reason,
            ..
        } = &data;
        let outcome = match reason == COMPLETED {
            true => "succeeded",
            false => "failed",
        };
        Self {
            specversion: "1.0".to_owned(),
            id: format!("{once}-{run}-{outcome}"),
            source: format!("/apis/millrace.dev/v1alpha1/namespaces/{namespace}/batchjobs"),
            kind: format!("dev.millrace.batchjob.{outcome}"),
            subject: format!("{namespace}/{name}"),
            datacontenttype: "application/json".to_owned(),
            data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_cloud_event_whose_id_is_that_of_the_end() {
        let over = |reason: &str, message: &str| Over {
            namespace: "tenant".to_owned(),
            name: "embed".to_owned(),
            run: 2,
            reason: reason.to_owned(),
            message: message.to_owned(),
            output: "s3://b/out".to_owned(),
            counts: None,
            postgres: None,
        };
        let event = Event::of(over(COMPLETED, "done"), "uid");
        let expected = serde_json::json!({
            "specversion": "1.0",
            "id": "uid-2-succeeded",
            "source": "/apis/millrace.dev/v1alpha1/namespaces/tenant/batchjobs",
            "type": "dev.millrace.batchjob.succeeded",
            "subject": "tenant/embed",
            "datacontenttype": "application/json",
            "data": {
                "namespace": "tenant", "name": "embed", "run": 2, "reason": "Completed",
                "message": "done", "output": "s3://b/out",
            },
        });
        assert_eq!(serde_json::to_value(&event).unwrap(), expected);
        let failed = Event::of(over("PlanFailed", "a"), "uid");
        assert_eq!(failed.id, Event::of(over("PlanFailed", "b"), "uid").id);
        assert_ne!(failed.id, event.id);
    }
}
