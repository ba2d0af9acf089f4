//! What a process remembers of the objects that it visits. What is remembered of an object goes with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};

use crate::apply::Children;
use crate::objects::Namespaced;

/// What is remembered of one object.
pub trait Memory: Default + Send + Sync + 'static {
    /// What this process applied for it.
    fn children(&self) -> &Children;
}

/// What is remembered of the objects of a kind: an `M` of each.
#[derive(Debug)]
pub struct Remembered<K: Namespaced, M> {
    entries: Mutex<HashMap<ObjectRef<K>, Entry<M>>>,
}

#[derive(Debug)]
struct Entry<M> {
    /// Whose it is: another object may have the name of one that is gone.
    uid: Option<String>,
    of_object: Arc<M>,
}

impl<K: Namespaced, M> Default for Remembered<K, M> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }
}

impl<K: Namespaced, M: Memory> Remembered<K, M> {
    /// What is remembered of an object, with nothing in it at first. Of one that is not in the store
    /// nothing stays: a visit may still be in hand when its object goes.
    pub fn of(&self, object: &ObjectRef<K>, store: &Store<K>) -> Arc<M> {
        // Looked for while the entries are held, so that whoever tells that it is gone comes later.
        let mut entries = self.entries();
        let Some(there) = store.get(object) else {
            return Arc::default();
        };
        let uid = there.uid();
        let found = entries.get(object).filter(|entry| entry.uid == uid);
        if let Some(entry) = found {
            return entry.of_object.clone();
        }
        let of_object = Arc::<M>::default();
        let entry = Entry {
            uid,
            of_object: of_object.clone(),
        };
        entries.insert(object.clone(), entry);
        of_object
    }

    /// What is remembered of an object, if anything is.
    pub fn find(&self, object: &ObjectRef<K>) -> Option<Arc<M>> {
        let entries = self.entries();
        Some(entries.get(object)?.of_object.clone())
    }

    /// Notes that a child of an object may not be as it was any more.
    pub fn touch(&self, owner: &ObjectRef<K>) {
        if let Some(entry) = self.entries().get(owner) {
            entry.of_object.children().touch();
        }
    }

    /// Notes the same of all objects.
    pub fn touch_all(&self) {
        for entry in self.entries().values() {
            entry.of_object.children().touch();
        }
    }

    /// Forgets an object that was told of, if it is gone. The store must have heard of it before.
    pub fn heed(&self, told: &ObjectRef<K>, store: &Store<K>) {
        let mut entries = self.entries();
        if store.get(told).is_none() {
            entries.remove(told);
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ObjectRef<K>, Entry<M>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether something was done that need not be done again with each visit; it was not at first.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// Whether it was.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes whether it was.
    pub fn set(&self, is_set: bool) {
        self.0.store(is_set, Ordering::Relaxed);
    }
}

/// What is kept in a slot, which is made where there is none yet.
pub fn kept<T, E>(
    slot: &Mutex<Option<Arc<T>>>,
    make: impl FnOnce() -> Result<T, E>,
) -> Result<Arc<T>, E> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = slot.as_ref() {
        return Ok(there.clone());
    }
    let made = Arc::new(make()?);
    *slot = Some(made.clone());
    Ok(made)
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;
    use millrace_crds::BatchJob;
    use serde_json::json;

    use super::*;
    use crate::context::JobMemory;

    type Jobs = Remembered<BatchJob, JobMemory>;

    fn job(uid: &str) -> BatchJob {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "embed", "namespace": "tenant", "uid": uid},
            "spec": {
                "serviceRef": {"name": "minilm"},
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap()
    }

    fn key() -> ObjectRef<BatchJob> {
        ObjectRef::new("embed").within("tenant")
    }

    #[test]
    fn what_is_remembered_of_a_job_goes_with_it() {
        let (jobs, mut writer) = (Jobs::default(), Writer::default());
        let store = writer.as_reader();
        writer.apply_watcher_event(&Event::Apply(job("1")));
        let first = jobs.of(&key(), &store);
        jobs.heed(&key(), &store);
        let same = Arc::ptr_eq(&first, &jobs.of(&key(), &store));
        assert!(same, "it was changed, and is still there");

        writer.apply_watcher_event(&Event::Delete(job("1")));
        jobs.heed(&key(), &store);
        assert!(jobs.find(&key()).is_none());
        jobs.of(&key(), &store);
        assert!(jobs.find(&key()).is_none(), "a visit was still in hand");
    }

    #[test]
    fn nothing_of_an_earlier_job_is_taken_for_that_of_the_next_one_of_its_name() {
        let (jobs, mut writer) = (Jobs::default(), Writer::default());
        let store = writer.as_reader();
        writer.apply_watcher_event(&Event::Apply(job("1")));
        let first = jobs.of(&key(), &store);
        // While the watch was away, one went and another came: nobody is told that the first is gone.
        writer.apply_watcher_event(&Event::Apply(job("2")));
        assert!(!Arc::ptr_eq(&first, &jobs.of(&key(), &store)));
    }

    #[test]
    fn a_list_that_begins_anew_touches_the_children_of_every_object() {
        let (jobs, mut writer) = (Jobs::default(), Writer::default());
        let store = writer.as_reader();
        writer.apply_watcher_event(&Event::Apply(job("1")));
        let of_job = jobs.of(&key(), &store);
        jobs.touch(&ObjectRef::new("another").within("tenant"));
        assert_eq!(of_job.children.touches(), 0);
        jobs.touch(&key());
        jobs.touch_all();
        assert_eq!(of_job.children.touches(), 2);
    }
}
