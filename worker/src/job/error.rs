//! Why a job and its service do not fit together.

/// Why a job and its service do not fit together. The manifests by themselves are checked before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The job names another service.
    #[error("spec.serviceRef.name is {named:?}, but the InferenceService given is {given:?}")]
    OtherService {
        /// Name in the job.
        named: String,
        /// Name of the service.
        given: String,
    },
    /// A step's prompt cannot be used.
    #[error("spec.steps[{index}].prompt{field}: {message}")]
    Prompt {
        /// Index of the step.
        index: usize,
        /// Field of the prompt, with a dot before it; empty for the prompt as a whole.
        field: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// A route cannot be used.
    #[error("spec.routes[{index}]{field}: {message}")]
    Route {
        /// Index of the route.
        index: usize,
        /// Field of the route, with a dot before it; empty for the route as a whole.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A step cannot be done by each service of the routes.
    #[error("spec.steps[{index}].model: {message}")]
    RoutedModel {
        /// Index of the step.
        index: usize,
        /// What is wrong and what to do.
        message: String,
    },
    /// The services of the routes name prices in several currencies.
    #[error(
        "spec.routes: the services name prices in {first} and in {second}; amounts are never \
         converted, so give them one currency"
    )]
    Currencies {
        /// One of them.
        first: String,
        /// Another.
        second: String,
    },
    /// The order of rows cannot be used.
    #[error("spec.input.order[{index}]: {message}")]
    Order {
        /// Index of the expression.
        index: usize,
        /// What is wrong and what to do.
        message: String,
    },
    /// Nothing says which vectors rows are compared by.
    #[error("spec.dedup.near: method Embedding needs from and step")]
    NearWithoutVectors,
    /// The filter cannot be used.
    #[error("spec.input.filter.{field}: {message}")]
    Filter {
        /// Field of the filter.
        field: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// Texts cannot be cut as it is asked for.
    #[error("spec.{field}: {message}")]
    Chunking {
        /// The field, below the job's spec.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The job has a budget, and nobody knows what its calls cost.
    #[error(
        "spec.budget.maxCost: InferenceService {service:?} names no prices; give it \
         spec.remote.pricing, or remove the budget"
    )]
    Unpriced {
        /// Name of the service.
        service: String,
    },
    /// The table that results are loaded into cannot be as it is asked for.
    #[error("spec.output.postgres{field}: {message}")]
    Postgres {
        /// Field of it, with a dot before it; empty for the table as a whole.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A step names a model that the service lacks.
    #[error("spec.steps[{index}].model: the service has no model {model:?}; it has {known}")]
    UnknownModel {
        /// Index of the step.
        index: usize,
        /// The model it names.
        model: String,
        /// The service's models.
        known: String,
    },
}
