//! Follows all objects of a kind: in a store, and as a stream that tells of an object only once the store
//! has it. Both controllers look at both kinds, and one that was told of an object before its store had
//! it would act on what was there before, and never be told again.

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use kube::Api;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, controller};

use crate::objects::Namespaced;
use crate::remembered::{Memory, Remembered};

/// What asks for visits.
pub type Requests<K> = BoxStream<'static, Result<ReconcileRequest<K>, watcher::Error>>;

/// Objects that are told of.
pub type Told<K> = BoxStream<'static, Result<Arc<K>, watcher::Error>>;

/// All objects of a kind.
pub struct Following<K: Namespaced> {
    /// What is there.
    pub store: Store<K>,
    /// Each object that is new, was changed or is gone. The store is kept while somebody polls this.
    pub told: Told<K>,
}

/// Follows all objects of a kind.
pub fn follow<K: Namespaced>(api: Api<K>) -> Following<K> {
    let (store, mut writer) = reflector::store();
    let reader = store.clone();
    let mut listed = HashSet::new();
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let told = events.flat_map(move |event| {
        let told = match event {
            Ok(event) => {
                let before = gone(&event, &listed, &reader);
                writer.apply_watcher_event(&event);
                let told = touched(event, &mut listed, &reader);
                told.into_iter().chain(before).map(Ok).collect()
            }
            Err(error) => vec![Err(error)],
        };
        stream::iter(told)
    });
    Following {
        store,
        told: told.boxed(),
    }
}

/// What is in the store and not in the list that takes its place with this event.
fn gone<K: Namespaced>(
    event: &Event<K>,
    listed: &HashSet<ObjectRef<K>>,
    store: &Store<K>,
) -> Vec<Arc<K>> {
    match event {
        Event::InitDone => {
            let mut gone = store.state();
            gone.retain(|object| !listed.contains(&ObjectRef::from_obj(object.as_ref())));
            gone
        }
        Event::Init | Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => Vec::new(),
    }
}

/// What is told of an event that the store has taken. A list is in the store once it is complete.
fn touched<K: Namespaced>(
    event: Event<K>,
    listed: &mut HashSet<ObjectRef<K>>,
    store: &Store<K>,
) -> Vec<Arc<K>> {
    match event {
        Event::Init => {
            listed.clear();
            Vec::new()
        }
        Event::InitApply(object) => {
            listed.insert(ObjectRef::from_obj(&object));
            Vec::new()
        }
        Event::InitDone => {
            let listed = std::mem::take(listed);
            listed
                .iter()
                .filter_map(|object| store.get(object))
                .collect()
        }
        Event::Apply(object) | Event::Delete(object) => vec![Arc::new(object)],
    }
}

/// Visits of the objects that are told of. What is remembered of those that are gone is forgotten.
pub fn of_objects<K: Namespaced, M: Memory>(
    told: Told<K>,
    store: &Store<K>,
    remembered: &Arc<Remembered<K, M>>,
) -> Requests<K> {
    let (store, remembered) = (store.clone(), remembered.clone());
    told.map_ok(move |object| {
        let object = ObjectRef::from_obj(object.as_ref());
        remembered.heed(&object, &store);
        object.into()
    })
    .boxed()
}

/// Visits of the owners of what a watch tells of. That a child was touched is noted before the visit.
pub fn of_owners<Owner: Namespaced, Child: Namespaced, M: Memory>(
    api: Api<Child>,
    which: watcher::Config,
    remembered: &Arc<Remembered<Owner, M>>,
) -> Requests<Owner> {
    let (of_all, of_one) = (remembered.clone(), remembered.clone());
    let events = watcher(api, which).default_backoff();
    let events = events.inspect_ok(move |event| {
        // What went while the watch was away, it does not tell.
        if matches!(event, Event::InitDone) {
            of_all.touch_all();
        }
    });
    controller::trigger_owners(events.touched_objects(), (), ())
        .inspect_ok(move |request: &ReconcileRequest<Owner>| of_one.touch(&request.obj_ref))
        .boxed()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: &str) -> ConfigMap {
        let metadata = json!({"name": name, "namespace": "n", "resourceVersion": version});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    /// Hands events to a store one by one: the names that are told of after each, and what the store has
    /// of them by then.
    fn told(events: Vec<Event<ConfigMap>>) -> Vec<Vec<(String, Option<String>)>> {
        let (store, mut writer) = reflector::store();
        let mut listed = HashSet::new();
        let told = events.into_iter().map(|event| {
            let before = gone(&event, &listed, &store);
            writer.apply_watcher_event(&event);
            let told = touched(event, &mut listed, &store);
            let told = told.into_iter().chain(before).map(|object| {
                let there = store.get(&ObjectRef::from_obj(object.as_ref()));
                let version = there.and_then(|it| it.metadata.resource_version.clone());
                (object.metadata.name.clone().unwrap(), version)
            });
            let mut told: Vec<_> = told.collect();
            told.sort();
            told
        });
        told.collect()
    }

    fn seen(name: &str, version: Option<&str>) -> (String, Option<String>) {
        (name.to_owned(), version.map(str::to_owned))
    }

    #[test]
    fn an_object_is_told_of_once_the_store_has_it() {
        let told = told(vec![
            Event::Init,
            Event::InitApply(object("a", "1")),
            Event::InitApply(object("b", "1")),
            Event::InitDone,
            Event::Apply(object("a", "2")),
            Event::Delete(object("b", "2")),
        ]);
        let nothing = Vec::new();
        let expected = [
            nothing.clone(),
            nothing.clone(),
            nothing,
            vec![seen("a", Some("1")), seen("b", Some("1"))],
            vec![seen("a", Some("2"))],
            vec![seen("b", None)],
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_went_while_the_watch_was_away_is_told_of_as_well() {
        let told = told(vec![
            Event::Init,
            Event::InitApply(object("a", "1")),
            Event::InitApply(object("b", "1")),
            Event::InitDone,
            Event::Init,
            Event::InitApply(object("b", "3")),
            Event::InitDone,
        ]);
        assert_eq!(
            told.last().unwrap(),
            &[seen("a", None), seen("b", Some("3"))]
        );
    }
}
