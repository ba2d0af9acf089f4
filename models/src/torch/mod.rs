//! The backend on libtorch: encoders of the BERT family from Hugging Face layout, and TorchScript
//! modules where they are allowed.

mod attention;
mod bert;
mod device;
mod distilbert;
mod encoder;
mod error;
mod head;
mod layout;
mod loader;
mod mpnet;
mod pooling;
mod roberta;
mod runtime;
mod torchscript;
mod weights;

use millrace_crds::inference_service::{Dtype, ModelSpec, Task};

pub use self::device::{Device, Placement};
pub use self::error::TorchLoadError;

use self::encoder::Encoder;
use self::head::{LoadedHead, to_host};
use self::layout::{GroupPolicy, Layout};
use self::loader::Loader;
use self::runtime::{Threads, guarded};
use self::torchscript::TorchScript;
use self::weights::{Place, Weights};
use crate::backend::{Appetite, Backend, BackendError, Head, HeadOutput, PackedBatch};
use crate::config::{Architecture, ModelConfig};
use crate::source::ModelFiles;

/// How the backend is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchOptions {
    /// Threads for all batches together; on a GPU they only feed it.
    pub threads: usize,
    /// Whether TorchScript modules, which run their author's code, may be loaded.
    pub allow_torchscript: bool,
    /// Where the model runs.
    pub device: Device,
}

/// Loads the model in `files` for `spec`. Blocks while the weights are read.
///
/// [`Placement::choose`] with the same arguments tells which device and format it gets.
pub fn load(
    files: &ModelFiles,
    config: &ModelConfig,
    spec: &ModelSpec,
    options: &TorchOptions,
) -> Result<Box<dyn Backend>, TorchLoadError> {
    let TorchOptions {
        threads,
        allow_torchscript,
        device,
    } = options;
    runtime::keep_freed_memory();
    let threads = Threads::share(*threads);
    let placement = Placement::choose(spec, *device)?;
    let habits = Habits::of(&placement);
    if spec.task == Task::TorchScript {
        let path = match files.weights.as_slice() {
            _ if !allow_torchscript => return Err(TorchLoadError::TorchScriptNotAllowed),
            [path] => path,
            _ => {
                return Err(TorchLoadError::Task {
                    model: "sharded",
                    task: spec.task,
                });
            }
        };
        let module = TorchScript::load(path, config, placement, threads, habits.batch_tokens)?;
        return Ok(Box::new(module));
    }
    if let Some(labels) = spec
        .labels
        .as_ref()
        .filter(|l| l.len() != config.labels.len())
    {
        let (named, classes) = (labels.len(), config.labels.len());
        return Err(TorchLoadError::LabelCount { named, classes });
    }
    let weights = Weights::open(&files.weights)?;
    let place = Place {
        device: placement.torch_device(),
        kind: placement.kind(),
    };
    let loader = Loader {
        weights: &weights,
        config,
        place,
        task: spec.task,
    };
    let _guard = tch::no_grad_guard();
    let head = load_head(&loader, spec, files)?;
    let encoder = load_encoder(&loader, spec.task)?;
    Ok(Box::new(Torch {
        encoder,
        head,
        threads,
        habits,
    }))
}

fn load_encoder(loader: &Loader, task: Task) -> Result<Encoder, TorchLoadError> {
    match loader.config.architecture {
        Architecture::Bert => bert::encoder(loader),
        Architecture::Roberta => roberta::encoder(loader),
        Architecture::DistilBert => distilbert::encoder(loader),
        Architecture::MpNet => mpnet::encoder(loader),
        Architecture::TorchScript => Err(TorchLoadError::Task {
            model: "torchscript",
            task,
        }),
    }
}

fn load_head(
    loader: &Loader,
    spec: &ModelSpec,
    files: &ModelFiles,
) -> Result<LoadedHead, TorchLoadError> {
    let hidden = loader.config.hidden_size;
    let classifier = match (spec.task, loader.config.architecture) {
        (Task::Embedding, _) => {
            let pooling = pooling::choose(spec, files)?;
            return Ok(LoadedHead::Pooled {
                pooling,
                width: hidden,
            });
        }
        (Task::TokenClassification, _) => {
            let labels = loader.config.labels.len();
            return Ok(LoadedHead::Token(loader.head_linear(
                "classifier",
                labels,
                hidden,
            )?));
        }
        (Task::SequenceClassification, Architecture::Bert) => bert::sequence_classifier(loader),
        (Task::SequenceClassification, Architecture::Roberta) => {
            roberta::sequence_classifier(loader)
        }
        (Task::SequenceClassification, Architecture::DistilBert) => {
            distilbert::sequence_classifier(loader)
        }
        (Task::SequenceClassification, Architecture::MpNet) => mpnet::sequence_classifier(loader),
        (Task::SequenceClassification, Architecture::TorchScript) | (Task::TorchScript, _) => {
            Err(TorchLoadError::Task {
                model: "torchscript",
                task: spec.task,
            })
        }
    };
    Ok(LoadedHead::Sequence(classifier?))
}

/// What a device likes.
#[derive(Debug, Clone, Copy)]
struct Habits {
    batch_tokens: usize,
    groups: GroupPolicy,
}

impl Habits {
    fn of(placement: &Placement) -> Self {
        match placement.device {
            // A GPU is idle between launches: large batches, few groups, more padding.
            Device::Cuda(_) => Self {
                batch_tokens: 16_384,
                groups: GroupPolicy {
                    merge_tokens_max: 16_384,
                    padding_percent_max: 12,
                },
            },
            // Copying a group of this size into a padded one costs about what a group of its own
            // would.
            Device::Cpu | Device::Auto => Self {
                batch_tokens: match placement.dtype {
                    // From a few hundred tokens on more gain nothing, and every online request
                    // waits for the batch that is running.
                    Dtype::Float32 => 1_024,
                    // Matrix units work these off so fast that the costs of each call weigh more.
                    Dtype::Auto | Dtype::BFloat16 | Dtype::Float16 => 4_096,
                },
                groups: GroupPolicy {
                    merge_tokens_max: 128,
                    padding_percent_max: 25,
                },
            },
        }
    }
}

/// A loaded encoder with its head.
struct Torch {
    encoder: Encoder,
    head: LoadedHead,
    threads: Threads,
    habits: Habits,
}

// SAFETY: the tensors inside are never changed after loading, only read by operations that make
// new ones; their reference counts are atomic, and libtorch's operators may be called from many
// threads at a time.
unsafe impl Sync for Torch {}

impl Torch {
    fn compute(&self, batch: &PackedBatch, layout: &Layout) -> Result<HeadOutput, tch::TchError> {
        let hidden = self.encoder.forward(layout, self.head.rows())?;
        let computed = to_host(&self.head.apply(&hidden, layout)?)?;
        let width = self.head.width();
        let values = match self.head.head() {
            Head::Pooled | Head::SequenceLogits => layout.restore_sequences(&computed, width),
            Head::TokenLogits => layout.restore_tokens(batch, &computed, width),
        };
        Ok(HeadOutput { width, values })
    }
}

impl Backend for Torch {
    fn appetite(&self) -> Appetite {
        Appetite {
            batch_tokens: self.habits.batch_tokens,
            callers: self.threads.callers,
        }
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        heads: &[Head],
    ) -> Result<Vec<HeadOutput>, BackendError> {
        if let Some(&head) = heads.iter().find(|&&head| head != self.head.head()) {
            return Err(BackendError::NoSuchHead(head));
        }
        let layout = Layout::plan(batch, self.encoder.limits, self.habits.groups)
            .map_err(|error| BackendError::Failed(error.to_string()))?;
        let output = match batch.sequences() {
            0 => HeadOutput {
                width: self.head.width(),
                values: Vec::new(),
            },
            _ => guarded(self.threads, batch, || self.compute(batch, &layout))?,
        };
        Ok(vec![output; heads.len()])
    }
}
