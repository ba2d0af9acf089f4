//! Why a model could not be loaded.

use std::path::PathBuf;

use millrace_crds::inference_service::{Dtype, Task};

use super::device::Device;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TorchLoadError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file begins like a Python pickle, which can run code when it is read.
    #[error("{} is a pickle, which is never read; convert the weights to safetensors", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The safetensors header does not describe the file.
    #[error("{} is not a valid safetensors file: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two weight files hold a tensor of the same name.
    #[error("two weight files hold a tensor {name:?}")]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that the configuration asks for is absent.
    #[error("the weights have no tensor {name:?}")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// The weights are a model's for another task.
    #[error(
        "task is {task:?}, but the weights have no tensor {name:?}, which that takes: name the task that \
         the model was trained for"
    )]
    MissingHead {
        /// The task asked for.
        task: Task,
        /// The first tensor that it takes.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {name:?} has shape {got:?}, but config.json asks for {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// A tensor is stored in a format that is not read.
    #[error("tensor {name:?} is stored as {got}; F32, F16 and BF16 are read")]
    StorageFormat {
        /// The tensor.
        name: String,
        /// Format in the file.
        got: String,
    },
    /// The family has no head for the task.
    #[error("a {model} model cannot serve task {task:?}")]
    Task {
        /// Family of the model.
        model: &'static str,
        /// The task asked for.
        task: Task,
    },
    /// The service names another number of labels than the classifier has.
    #[error("the service names {named} labels, but the model has {classes}")]
    LabelCount {
        /// Labels in the service's specification.
        named: usize,
        /// Rows of the classifier.
        classes: usize,
    },
    /// The pooling configuration is unreadable or asks for what is not computed.
    #[error("{}: {reason}", path.display())]
    Pooling {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The administrator has not allowed TorchScript, which runs the model author's code.
    #[error("TorchScript modules are not allowed on this server")]
    TorchScriptNotAllowed,
    /// A TorchScript module computes in the format it was saved in.
    #[error("a TorchScript module keeps the format it was saved in; remove dtype {0:?}")]
    TorchScriptDtype(Dtype),
    /// The device is not there.
    #[error("device {0} is not available")]
    NoSuchDevice(Device),
    /// There is not enough memory for the weights.
    #[error("out of memory while loading the weights")]
    OutOfMemory,
    /// The device fails whatever it is asked.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    /// libtorch failed.
    #[error("libtorch failed: {0}")]
    Torch(String),
}

impl TorchLoadError {
    /// Whether loading the same files again cannot help.
    pub fn is_permanent(&self) -> bool {
        !matches!(
            self,
            Self::Read { .. } | Self::OutOfMemory | Self::DeviceLost(_)
        )
    }
}

impl From<tch::TchError> for TorchLoadError {
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        if is_out_of_memory(&text) {
            Self::OutOfMemory
        } else if is_device_lost(&text) {
            Self::DeviceLost(first_line(&text))
        } else {
            Self::Torch(first_line(&text))
        }
    }
}

/// Whether libtorch's message says that memory ran out, on the device or on the host.
pub fn is_out_of_memory(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "cuda_error_out_of_memory",
        // What the libraries above CUDA say when they find no room for their work space.
        "cublas_status_alloc_failed",
        "cudnn_status_alloc_failed",
    ]
    .iter()
    .any(|phrase| message.contains(phrase))
}

/// Whether libtorch's message says that the GPU failed in a way that sticks: such an error is the
/// answer to every later call of this process too.
pub fn is_device_lost(message: &str) -> bool {
    message.to_ascii_lowercase().contains("cuda error") && !is_out_of_memory(message)
}

/// libtorch appends a C++ stack trace to its messages; the first line says what happened.
pub fn first_line(message: &str) -> String {
    let line = message
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no message");
    line.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_messages_of_device_and_host_are_known() {
        for message in [
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.",
        ] {
            assert!(is_out_of_memory(message), "{message}");
        }
        assert!(!is_out_of_memory(
            "mat1 and mat2 shapes cannot be multiplied"
        ));
    }

    #[test]
    fn a_cuda_error_that_is_no_lack_of_memory_loses_the_device() {
        for (message, lost) in [
            ("CUDA error: an illegal memory access was encountered", true),
            ("CUDA error: device-side assert triggered\nmore", true),
            ("CUDA error: out of memory", false),
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
                false,
            ),
            ("mat1 and mat2 shapes cannot be multiplied", false),
        ] {
            assert_eq!(is_device_lost(message), lost, "{message}");
        }
    }

    #[test]
    fn a_lack_of_memory_or_of_a_file_may_be_gone_the_next_time() {
        let memory = TorchLoadError::from(tch::TchError::Torch("CUDA out of memory.".into()));
        assert!(!memory.is_permanent());
        let lost = TorchLoadError::from(tch::TchError::Torch("CUDA error: unknown".into()));
        assert!(!lost.is_permanent());
        assert!(TorchLoadError::TorchScriptNotAllowed.is_permanent());
    }
}
