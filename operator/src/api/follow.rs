//! A stream of events for whoever stays: how far a job is, whenever that changes, up to its end.
//!
//! It closes without an `end` when the process is to stop, when the job is gone, and when whoever asked
//! may not look any more; who comes again finds out which it was.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::Event;
use futures::Stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use millrace_crds::BatchJob;
use millrace_protocol::progress::JobProgress;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::Api;
use super::access::{Denied, Object};
use crate::batch_job::progress;

/// How often a job is looked at: as often as its status is written at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is asked whether whoever stays may still look.
const ACCESS_INTERVAL: Duration = Duration::from_secs(60);

/// Somebody who stays.
pub struct Follower {
    api: Arc<Api>,
    job: Arc<BatchJob>,
    token: Vec<u8>,
    /// Their place among the streams.
    _permit: OwnedSemaphorePermit,
    looks: Interval,
    access_asked: Instant,
    told: Option<JobProgress>,
}

impl Follower {
    /// Somebody who may look at the job.
    pub fn new(
        api: Arc<Api>,
        job: Arc<BatchJob>,
        token: Vec<u8>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        // Whoever reads slowly misses looks.
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            api,
            job,
            token,
            _permit: permit,
            looks,
            access_asked: Instant::now(),
            told: None,
        }
    }

    /// What they are told.
    pub fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures::stream::unfold(Some(self), |follower| async move {
            let mut follower = follower?;
            let news = follower.next().await?;
            let data = serde_json::to_string(&news).expect("news is plain data");
            let event = Event::default().event(news.phase.event()).data(data);
            Some((Ok(event), (!news.phase.is_end()).then_some(follower)))
        })
    }

    /// The next news; nothing where there is none to come.
    async fn next(&mut self) -> Option<JobProgress> {
        let stop = self.api.stop.clone();
        loop {
            tokio::select! {
                _ = self.looks.tick() => {}
                () = stop.cancelled() => return None,
            }
            if !self.may_look().await {
                return None;
            }
            // A process that begins to lead sees all objects anew, and nothing is gone meanwhile.
            let Some(objects) = self.api.shown.objects().await else {
                continue;
            };
            let (namespace, name) = (self.job.namespace()?, self.job.name_any());
            let job = objects.job(&namespace, &name);
            let job = job.filter(|job| job.uid() == self.job.uid())?;
            let news = progress::of(&job, &Time(Timestamp::now()));
            if self.told.as_ref() != Some(&news) {
                self.told = Some(news.clone());
                return Some(news);
            }
        }
    }

    async fn may_look(&mut self) -> bool {
        if self.access_asked.elapsed() < ACCESS_INTERVAL {
            return true;
        }
        self.access_asked = Instant::now();
        let (namespace, name) = (
            self.job.namespace().unwrap_or_default(),
            self.job.name_any(),
        );
        let object = Object {
            namespace: &namespace,
            name: &name,
        };
        match self.api.access.admit(&self.token, object).await {
            Err(Denied::Unknown | Denied::Forbidden) => false,
            // An API server that is away takes no right from anybody.
            Ok(()) | Err(Denied::Busy | Denied::Away(_) | Denied::Slow) => true,
        }
    }
}
