//! libtorch as tch wants it: `lib/` and `include/`, taken out of the wheel of PyTorch.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::wheel::{self, Wheel};
use crate::cache::Cache;
use crate::process::{heading, run, succeeds};

const TORCH: Wheel = Wheel {
    name: "torch",
    version: "2.13.0",
    sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
};
const CUPTI: Wheel = Wheel {
    name: "nvidia-cuda-cupti",
    version: "13.0.85",
    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
};
const CUDA_RUNTIME: Wheel = Wheel {
    name: "nvidia-cuda-runtime",
    version: "13.0.96",
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
};

/// Links an empty libtorch.so, because the wheel's own asks for the CUDA libraries.
const STUB: &[&str] = &[
    "-shared",
    "-o",
    "libtorch.so",
    "-Wl,--no-as-needed",
    "-L.",
    "-ltorch_cpu",
    "-lc10",
];

/// Where libtorch is.
pub enum Libtorch {
    /// A folder with `lib/` and `include/`.
    Folder(PathBuf),
    /// The installed PyTorch that `LIBTORCH_USE_PYTORCH` asks for, with its library folder.
    InstalledPytorch(PathBuf),
}

impl Libtorch {
    /// What building and running the inference-server needs in its environment.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        match self {
            Self::Folder(folder) => vec![
                ("LIBTORCH", folder.into()),
                ("LIBTORCH_CXX11_ABI", "1".into()),
                ("LD_LIBRARY_PATH", folder.join("lib").into()),
            ],
            Self::InstalledPytorch(lib) => vec![
                // The rest of the environment is the user's own; tch takes another version only so.
                ("LIBTORCH_BYPASS_VERSION_CHECK", "1".into()),
                ("LD_LIBRARY_PATH", lib.into()),
            ],
        }
    }
}

/// Makes libtorch for this machine: with CUDA where an NVIDIA GPU answers, else for the CPU.
pub fn set_up(cache: &Cache) -> Result<Libtorch> {
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return installed_pytorch();
    }
    let folder = if succeeds("nvidia-smi", &["-L"]) {
        cuda(cache)
    } else {
        cpu(cache)
    };
    folder.map(Libtorch::Folder)
}

fn installed_pytorch() -> Result<Libtorch> {
    let script = "import os, torch; print(os.path.join(os.path.dirname(torch.__file__), 'lib'))";
    let printed = crate::process::output(Command::new("python3").args(["-c", script]))
        .context("LIBTORCH_USE_PYTORCH is set, but python3 cannot import torch")?;
    Ok(Libtorch::InstalledPytorch(printed.trim().into()))
}

fn cpu(cache: &Cache) -> Result<PathBuf> {
    let stamp = [TORCH.stamp(), CUPTI.stamp(), CUDA_RUNTIME.stamp()].concat();
    let folder = cache.folder("libtorch-2.13.0-cpu", &stamp, |making| {
        let from_torch = &[
            ("torch/include/", "include/"),
            ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
            ("torch/lib/libc10.so", "lib/libc10.so"),
            ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
            (
                "torch/lib/libtorch_global_deps.so",
                "lib/libtorch_global_deps.so",
            ),
        ];
        TORCH.unpack(cache, from_torch, making)?;
        // libtorch_cpu.so names these two, although it never calls them without a GPU.
        let cupti = &[("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")];
        CUPTI.unpack(cache, cupti, making)?;
        let cudart = &[("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")];
        CUDA_RUNTIME.unpack(cache, cudart, making)?;
        run(Command::new("gcc")
            .args(STUB)
            .current_dir(making.join("lib")))
    })?;
    for wheel in [TORCH, CUPTI, CUDA_RUNTIME] {
        wheel.discard(cache)?;
    }
    Ok(folder)
}

/// The whole wheel with the CUDA libraries it depends on, all in one `lib/`. The wheel of PyTorch is
/// pinned by hash; its dependencies by the exact versions that it names.
fn cuda(cache: &Cache) -> Result<PathBuf> {
    cache.folder("libtorch-2.13.0-cuda", &TORCH.stamp(), |making| {
        heading("an NVIDIA GPU answers: fetching the CUDA libraries of PyTorch, some gigabytes");
        let wheels = cache.path("downloads/cuda");
        fs::create_dir_all(&wheels)?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "download"])
            .args(wheel::FOR_PYTHON)
            .arg(format!("{}=={}", TORCH.name, TORCH.version))
            .arg("--dest")
            .arg(&wheels);
        run(&mut pip)?;
        let lib = making.join("lib");
        for entry in fs::read_dir(&wheels)? {
            let file = entry?.path();
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.starts_with("torch-") {
                wheel::verify(&file, TORCH.sha256)?;
                let picks = &[("torch/include/", "include/"), ("torch/lib/", "lib/")];
                wheel::unpack(&file, picks, making)?;
            } else if name.starts_with("nvidia_") {
                let unpacked = making.join("unpacked");
                wheel::unpack(&file, &[("nvidia/", "")], &unpacked)?;
                move_libraries(&unpacked, &lib)?;
                fs::remove_dir_all(unpacked)?;
            }
        }
        fs::remove_dir_all(wheels).context("the unpacked wheels cannot be removed")
    })
}

/// Moves every shared library below `from` into `to`.
fn move_libraries(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            move_libraries(&entry.path(), to)?;
        } else if name.to_string_lossy().contains(".so") {
            fs::rename(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}
