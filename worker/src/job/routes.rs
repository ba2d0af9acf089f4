//! Which of several services answers which rows of a job. Pure.

mod answers;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use millrace_crds::InferenceService;
use millrace_crds::batch_job;
use millrace_protocol::cost::Cost;
use millrace_protocol::ledger::ContentHash;
use millrace_protocol::routes::{ArmIndex, RouteTally};
use millrace_protocol::row::RowError;
use millrace_protocol::wire::{Prediction, Untagged};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{JobError, Remote, Step, remote};
use crate::expression::Expression;

/// The routes of a job, and the services that answer on them.
#[derive(Debug, Clone)]
pub struct Routing {
    /// In the order in which rows are offered to them.
    routes: Vec<Route>,
    /// The arms of all routes; a route without arms has one all the same.
    arms: Vec<Arc<Arm>>,
    /// The services, each once.
    services: Vec<Service>,
    /// The fields that conditions name, each once.
    fields: Vec<String>,
}

#[derive(Debug, Clone)]
struct Route {
    name: String,
    when: Option<Expression>,
    /// Its arms among those of all routes.
    arms: Range<usize>,
    escalate: Option<Escalate>,
}

#[derive(Debug, Clone)]
struct Escalate {
    when: Expression,
    to: usize,
}

/// Who answers a share of the rows of a route.
#[derive(Debug, PartialEq, Eq)]
pub struct Arm {
    /// Its place among the arms of all routes.
    pub index: ArmIndex,
    /// Index of its route.
    pub route: usize,
    /// Name of its route.
    pub route_name: String,
    /// Its own name, where its route has several.
    pub name: Option<String>,
    /// Index of its service.
    pub service: usize,
    /// Its share.
    weight: u32,
}

/// A service that answers rows of a job with routes.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The steps of the job, with the models of this service.
    pub steps: Vec<Step>,
    /// The API elsewhere, if it is one.
    pub remote: Option<Remote>,
}

impl Routing {
    /// The services, each once.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The APIs elsewhere, for which `change` may change how they are asked.
    pub fn change_remotes(&mut self, change: impl Fn(&mut Remote)) {
        let remotes = self.services.iter_mut();
        remotes.filter_map(|it| it.remote.as_mut()).for_each(change);
    }

    /// The steps of the service of this name, or of the first one.
    pub fn steps_of(&self, service: &str) -> &[Step] {
        let named = self.services.iter().find(|it| it.name == service);
        &named.unwrap_or(&self.services[0]).steps
    }

    /// Steps with all prompts: a server gets none, and all others get the same ones.
    pub fn prompts(&self) -> &[Step] {
        let remote = self.services.iter().find(|it| it.remote.is_some());
        &remote.unwrap_or(&self.services[0]).steps
    }

    /// Checks that prices are known where there is a budget, and that they are of one currency.
    pub fn check_prices(&self, cost_max: Option<Cost>) -> Result<(), JobError> {
        let mut currency: Option<&String> = None;
        for Service { name, remote, .. } in &self.services {
            // A server of one's own takes no money.
            let Some(remote) = remote else {
                continue;
            };
            match (&remote.spec.pricing, currency) {
                (None, _) if cost_max.is_some() => {
                    let service = name.clone();
                    return Err(JobError::Unpriced { service });
                }
                (None, _) => {}
                (Some(pricing), Some(first)) if *first != pricing.currency => {
                    return Err(JobError::Currencies {
                        first: first.clone(),
                        second: pricing.currency.clone(),
                    });
                }
                (Some(pricing), _) => currency = Some(&pricing.currency),
            }
        }
        Ok(())
    }

    /// The fields that decide which route takes a row, each once.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Those among `fields`, a JSON object, that decide which route takes a row.
    pub fn decisive(&self, fields: &str) -> String {
        let mut fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(fields).expect("the reader made it of fields");
        fields.retain(|name, _| self.fields.contains(name));
        serde_json::to_string(&fields).expect("fields serialise")
    }

    /// The arm that a row with these fields and this content comes to first.
    pub fn first(&self, fields: &str, content: ContentHash) -> Result<&Arc<Arm>, RowError> {
        for (index, route) in self.routes.iter().enumerate() {
            let takes = match &route.when {
                None => true,
                Some(when) => when
                    .is_true_for(fields)
                    .map_err(|untold| untold.of_row(&format!("routes[{index}].when")))?,
            };
            if takes {
                return Ok(self.arm(index, content));
            }
        }
        unreachable!("one route has no condition")
    }

    /// The arm that is asked next about a row of this content, if what was answered is not good enough
    /// for the route of `arm`.
    pub fn next(
        &self,
        arm: &Arm,
        answer: &[Prediction],
        content: ContentHash,
    ) -> Result<Option<&Arc<Arm>>, RowError> {
        let Some(Escalate { when, to }) = &self.routes[arm.route].escalate else {
            return Ok(None);
        };
        let steps = &self.services[arm.service].steps;
        let answers = steps.iter().zip(answer);
        let answers = answers.filter(|(step, _)| when.fields().contains(&step.name));
        let answers: Map<String, Value> = answers
            .map(|(Step { name, .. }, prediction)| {
                let value = serde_json::to_value(Untagged(prediction));
                (name.clone(), value.expect("a prediction is plain data"))
            })
            .collect();
        match when.is_true(&answers) {
            Ok(true) => Ok(Some(self.arm(*to, content))),
            Ok(false) => Ok(None),
            Err(untold) => Err(untold.of_row(&format!("routes[{}].escalate.when", arm.route))),
        }
    }

    /// The arm that is asked next about a row of this content if no answer of `arm` is good enough.
    pub fn after(&self, arm: &Arm, content: ContentHash) -> Option<&Arc<Arm>> {
        let escalate = self.routes[arm.route].escalate.as_ref();
        escalate.map(|escalate| self.arm(escalate.to, content))
    }

    /// The arm of a route that a row of this content gets: whatever else there is, it is the same one.
    fn arm(&self, route: usize, content: ContentHash) -> &Arc<Arm> {
        let Route { name, arms, .. } = &self.routes[route];
        let arms = &self.arms[arms.clone()];
        let whole: u64 = arms.iter().map(|arm| u64::from(arm.weight)).sum();
        // With the name, so that the shares of two routes have nothing to do with each other.
        let hash = Sha256::new().chain_update(name).chain_update(content);
        let hash = hash.finalize();
        let hash = u64::from_le_bytes(*hash.first_chunk().expect("it is longer than that"));
        let mut place = hash % whole;
        let is_it = |arm: &&Arc<Arm>| match place.checked_sub(u64::from(arm.weight)) {
            Some(rest) => {
                place = rest;
                false
            }
            None => true,
        };
        arms.iter()
            .find(is_it)
            .expect("a place is within the whole")
    }

    /// The arm of these names, as a result line has them.
    pub fn named(&self, route: &str, arm: Option<&str>) -> Option<&Arc<Arm>> {
        let mut arms = self.arms.iter();
        arms.find(|it| it.route_name == route && it.name.as_deref() == arm)
    }

    /// A tally of nothing for each arm, by its index.
    pub fn tallies(&self) -> Vec<RouteTally> {
        let tally = |arm: &Arc<Arm>| RouteTally {
            route: arm.route_name.clone(),
            arm: arm.name.clone(),
            ..RouteTally::default()
        };
        self.arms.iter().map(tally).collect()
    }
}

/// Resolves the routes of a job whose steps are `steps` and whose services are among `services`, of
/// which the first one's workers work for the job.
pub fn routing(
    routes: &[batch_job::Route],
    steps: &[batch_job::Step],
    services: &[&InferenceService],
) -> Result<Routing, JobError> {
    let mut routing = Routing {
        routes: Vec::new(),
        arms: Vec::new(),
        services: Vec::new(),
        fields: Vec::new(),
    };
    for (index, route) in routes.iter().enumerate() {
        let refused = |field: &str, message: String| JobError::Route {
            index,
            field: field.to_owned(),
            message,
        };
        let first = routing.arms.len();
        for (service, weight) in route.answerers() {
            let named = &service.name;
            let found = services
                .iter()
                .find(|it| it.metadata.name.as_ref() == Some(named));
            let found = found
                .ok_or_else(|| refused("", format!("there is no InferenceService {named:?}")))?;
            routing.arms.push(Arc::new(Arm {
                index: routing.arms.len() as ArmIndex,
                route: index,
                route_name: route.name.clone(),
                name: route.arms.as_ref().map(|_| named.clone()),
                service: service_index(&mut routing.services, found, steps)?,
                weight,
            }));
        }
        let escalate = (route.escalate.as_ref())
            .map(|it| escalate(it, index, routes, steps))
            .transpose()
            .map_err(|(field, message)| refused(field, message))?;
        let arms = &routing.arms[first..];
        if let Some(Escalate { when, .. }) = &escalate
            && let Some(message) = no_answer_has(when, arms, &routing.services, services)
        {
            return Err(refused(".escalate.when", message));
        }
        let when = (route.when.as_deref()).map(Expression::new).transpose();
        routing.routes.push(Route {
            name: route.name.clone(),
            when: when.map_err(|message| refused(".when", message))?,
            arms: first..routing.arms.len(),
            escalate,
        });
    }
    routing.fields = fields(&routing.routes);
    unreachable_route(routes)?;
    one_server(&routing)?;
    Ok(routing)
}

/// The fields of rows that conditions name, each once.
fn fields(routes: &[Route]) -> Vec<String> {
    let whens = routes.iter().filter_map(|route| route.when.as_ref());
    let fields: BTreeSet<&String> = whens.flat_map(Expression::fields).collect();
    fields.into_iter().cloned().collect()
}

/// The manifest of a service that answers.
pub fn manifest_of<'a>(
    service: &Service,
    services: &[&'a InferenceService],
) -> &'a InferenceService {
    let is_it = |it: &&&InferenceService| it.metadata.name.as_ref() == Some(&service.name);
    services
        .iter()
        .find(is_it)
        .expect("routes were resolved from these")
}

/// The index of a service among those that answer, with which it becomes one of them.
fn service_index(
    services: &mut Vec<Service>,
    service: &InferenceService,
    steps: &[batch_job::Step],
) -> Result<usize, JobError> {
    let name = service.metadata.name.clone().unwrap_or_default();
    if let Some(known) = services.iter().position(|it| it.name == name) {
        return Ok(known);
    }
    services.push(Service {
        steps: routed_steps(&name, service, steps)?,
        remote: remote::remote(service),
        name,
    });
    Ok(services.len() - 1)
}

/// The steps of the job with the models of a service, whose server gets no prompts.
fn routed_steps(
    name: &str,
    service: &InferenceService,
    steps: &[batch_job::Step],
) -> Result<Vec<Step>, JobError> {
    let models: Vec<&str> = service.spec.model_names().collect();
    let step = |(index, step): (usize, &batch_job::Step)| {
        let no_model = |message: String| JobError::RoutedModel { index, message };
        let model = match (&step.model, &models[..]) {
            (Some(named), _) if models.contains(&named.as_str()) => named.clone(),
            (Some(named), _) => {
                let known = models.join(", ");
                return Err(no_model(format!(
                    "InferenceService {name:?} has no model {named:?}; it has {known}. Leave `model` \
                     out where each service has one"
                )));
            }
            (None, [only]) => (*only).to_owned(),
            (None, several) => {
                return Err(no_model(format!(
                    "InferenceService {name:?} has {} models; name one",
                    several.len()
                )));
            }
        };
        let is_remote = service.spec.remote.is_some();
        let prompt = step.prompt.clone().filter(|_| is_remote);
        remote::check_prompt(index, prompt.as_ref(), service)?;
        Ok(Step {
            name: step.name.clone(),
            model,
            prompt,
        })
    };
    steps.iter().enumerate().map(step).collect()
}

/// Resolves who is asked about rows of the route `index` whose answers are not good enough.
fn escalate(
    escalate: &batch_job::Escalate,
    index: usize,
    routes: &[batch_job::Route],
    steps: &[batch_job::Step],
) -> Result<Escalate, (&'static str, String)> {
    let batch_job::Escalate { when, to } = escalate;
    let when = Expression::new(when).map_err(|message| (".escalate.when", message))?;
    let is_step = |field: &&String| steps.iter().any(|step| step.name == **field);
    if let Some(field) = when.fields().iter().find(|field| !is_step(field)) {
        let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
        let names = names.join(", ");
        let message = format!("names {field:?}, which is no step; the steps are {names}");
        return Err((".escalate.when", message));
    }
    let to = match routes.iter().position(|route| route.name == *to) {
        Some(later) if later > index => later,
        _ => {
            let message = format!("{to:?} is no later route; put it behind this one");
            return Err((".escalate.to", message));
        }
    };
    Ok(Escalate { when, to })
}

/// What is wrong with a condition that looks at what no answer of any of the `arms` has.
fn no_answer_has(
    when: &Expression,
    arms: &[Arc<Arm>],
    of_arms: &[Service],
    services: &[&InferenceService],
) -> Option<String> {
    let of_each = arms.iter().map(|arm| {
        let service = &of_arms[arm.service];
        answers::unknown_field(when, &service.steps, manifest_of(service, services))
    });
    // What one of them has is looked at in its answers.
    let of_all: Option<Vec<String>> = of_each.collect();
    of_all?.into_iter().next()
}

/// Refuses a route that no row can come to.
fn unreachable_route(routes: &[batch_job::Route]) -> Result<(), JobError> {
    let last = routes.iter().position(|route| route.when.is_none());
    let last = last.unwrap_or(routes.len());
    for (index, route) in routes.iter().enumerate().skip(last + 1) {
        let mut escalations = routes.iter().filter_map(|it| it.escalate.as_ref());
        if !escalations.any(|escalate| escalate.to == route.name) {
            return Err(JobError::Route {
                index,
                field: String::new(),
                message: format!(
                    "no row comes to it: {:?} before it takes all of them, and none escalates to it",
                    routes[last].name
                ),
            });
        }
    }
    Ok(())
}

/// Refuses a second service with a server, since a worker stands beside one.
fn one_server(routing: &Routing) -> Result<(), JobError> {
    let is_server = |arm: &&Arc<Arm>| routing.services[arm.service].remote.is_none();
    let mut servers = routing.arms.iter().filter(is_server);
    let Some(first) = servers.next() else {
        return Ok(());
    };
    match servers.find(|arm| arm.service != first.service) {
        None => Ok(()),
        Some(second) => Err(JobError::Route {
            index: second.route,
            field: String::new(),
            message: format!(
                "InferenceService {:?} has a server, as {:?} has: only one may, all others must be \
                 services with spec.remote",
                routing.services[second.service].name, routing.services[first.service].name
            ),
        }),
    }
}

#[cfg(test)]
mod tests;
