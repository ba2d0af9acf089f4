//! Which device and number format a model gets.

use std::fmt;

use millrace_crds::inference_service::{Dtype, ModelSpec, Task};
use tch::Kind;

use super::error::TorchLoadError;

/// Where a model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first CUDA device if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::Cpu => out.write_str("cpu"),
            Self::Cuda(index) => write!(out, "cuda:{index}"),
        }
    }
}

/// The device and number format chosen for a model; neither is `Auto` any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// `Cpu` or `Cuda`.
    pub device: Device,
    /// Format of weights and computation.
    pub dtype: Dtype,
}

impl Placement {
    /// Chooses for `spec`, wishing for `device`.
    pub fn choose(spec: &ModelSpec, device: Device) -> Result<Self, TorchLoadError> {
        let device = available(device)?;
        let dtype = match (spec.task, spec.dtype) {
            (Task::TorchScript, Dtype::Auto | Dtype::Float32) => Dtype::Float32,
            (Task::TorchScript, other) => return Err(TorchLoadError::TorchScriptDtype(other)),
            (_, Dtype::Auto) => fastest_dtype(device),
            (_, asked) => asked,
        };
        Ok(Self { device, dtype })
    }

    /// The name of the format as the API writes it.
    pub fn dtype_name(&self) -> &'static str {
        match self.dtype {
            Dtype::BFloat16 => "BFloat16",
            Dtype::Float16 => "Float16",
            Dtype::Float32 | Dtype::Auto => "Float32",
        }
    }

    pub(super) fn torch_device(&self) -> tch::Device {
        match self.device {
            Device::Cuda(index) => tch::Device::Cuda(index),
            Device::Cpu | Device::Auto => tch::Device::Cpu,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self.dtype {
            Dtype::BFloat16 => Kind::BFloat16,
            Dtype::Float16 => Kind::Half,
            Dtype::Float32 | Dtype::Auto => Kind::Float,
        }
    }
}

fn available(device: Device) -> Result<Device, TorchLoadError> {
    let count = || usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    match device {
        Device::Cpu => Ok(Device::Cpu),
        Device::Auto if count() > 0 => Ok(Device::Cuda(0)),
        Device::Auto => Ok(Device::Cpu),
        Device::Cuda(index) if index < count() => Ok(device),
        Device::Cuda(_) => Err(TorchLoadError::NoSuchDevice(device)),
    }
}

/// The fastest format that the device has units for. Without them a half format is emulated and
/// slower than Float32.
fn fastest_dtype(device: Device) -> Dtype {
    match device {
        Device::Cuda(index) => match compute_capability_major(index) {
            Some(8..) => Dtype::BFloat16,
            Some(7) => Dtype::Float16,
            _ => Dtype::Float32,
        },
        Device::Cpu | Device::Auto if cpu_computes_bfloat16() => Dtype::BFloat16,
        Device::Cpu | Device::Auto => Dtype::Float32,
    }
}

/// Whether the CPU multiplies bfloat16 matrices. The kernel's list is asked, not the CPU, because
/// the tile registers also need the kernel's leave.
fn cpu_computes_bfloat16() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| lists_bfloat16(&text))
}

fn lists_bfloat16(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| {
            line.split_whitespace()
                .any(|flag| flag == "amx_bf16" || flag == "avx512_bf16")
        })
}

/// Major compute capability of a CUDA device, asked of the driver because libtorch's C interface
/// does not tell. `None` where the driver cannot be asked.
fn compute_capability_major(index: usize) -> Option<i32> {
    const CAPABILITY_MAJOR: libc::c_int = 75;
    type Init = unsafe extern "C" fn(libc::c_uint) -> libc::c_int;
    type GetDevice = unsafe extern "C" fn(*mut libc::c_int, libc::c_int) -> libc::c_int;
    type GetAttribute =
        unsafe extern "C" fn(*mut libc::c_int, libc::c_int, libc::c_int) -> libc::c_int;
    let ordinal = libc::c_int::try_from(index).ok()?;
    // SAFETY: the three symbols are the CUDA driver's documented C functions with these
    // signatures; each is used only if it was found, and the pointers are to live integers. The
    // library stays loaded for the life of the process, as libtorch keeps it too.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            return None;
        }
        let find = |name: &std::ffi::CStr| {
            let symbol = libc::dlsym(library, name.as_ptr());
            (!symbol.is_null()).then_some(symbol)
        };
        let init: Init = std::mem::transmute(find(c"cuInit")?);
        let get_device: GetDevice = std::mem::transmute(find(c"cuDeviceGet")?);
        let get_attribute: GetAttribute = std::mem::transmute(find(c"cuDeviceGetAttribute")?);
        let (mut handle, mut major) = (0, 0);
        let answered = init(0) == 0
            && get_device(&mut handle, ordinal) == 0
            && get_attribute(&mut major, CAPABILITY_MAJOR, handle) == 0;
        answered.then_some(major)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_needs_units_for_it() {
        assert!(lists_bfloat16(
            "processor : 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n"
        ));
        assert!(lists_bfloat16("flags\t\t: fpu amx_bf16\n"));
        assert!(!lists_bfloat16(
            "flags\t\t: fpu avx2 fma\nbugs : avx512_bf16\n"
        ));
    }
}
