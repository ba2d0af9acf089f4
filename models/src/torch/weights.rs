//! Reads tensors out of safetensors files.
//!
//! The files are hostile until proven otherwise: the header is bounded and checked against the
//! file's size, and every tensor's name, storage format and shape against what the model asks for,
//! before a byte of it is read. The data is copied in small pieces straight into its place, so that
//! loading needs little more memory than the weights themselves. The files are not mapped: one cut
//! short while it is mapped would kill the process.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use tch::{Device, Kind, Tensor};

use super::error::TorchLoadError;

/// Bytes of the length that a safetensors file starts with.
const LENGTH_BYTES: u64 = 8;
/// Largest header that is read; the format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Bytes read at a time: far below the smallest weights, far above the cost of a read.
const PIECE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The open weight files of a model.
pub struct Weights {
    files: Vec<WeightFile>,
    tensors: HashMap<String, Stored>,
}

/// Where a tensor goes and in which format.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Device of the new tensor.
    pub device: Device,
    /// Format of the new tensor.
    pub kind: Kind,
}

struct WeightFile {
    path: PathBuf,
    file: File,
}

struct Stored {
    file: usize,
    kind: Result<Kind, String>,
    shape: Vec<usize>,
    /// Offset of the first byte in the file.
    offset: u64,
}

impl Weights {
    /// Opens the files and checks their headers.
    pub fn open(paths: &[PathBuf]) -> Result<Self, TorchLoadError> {
        let mut weights = Self {
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        for path in paths {
            weights.add(path)?;
        }
        Ok(weights)
    }

    fn add(&mut self, path: &Path) -> Result<(), TorchLoadError> {
        let fail = |source| TorchLoadError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let (data_start, metadata) = read_header(path, &mut file, size)?;
        for (name, info) in metadata.tensors() {
            let stored = Stored {
                file: self.files.len(),
                kind: kind_of(info.dtype),
                shape: info.shape.clone(),
                offset: data_start + info.data_offsets.0 as u64,
            };
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(TorchLoadError::DuplicateTensor { name });
            }
        }
        self.files.push(WeightFile {
            path: path.to_owned(),
            file,
        });
        Ok(())
    }

    /// Whether the files hold a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The prefix under which the encoder's tensors are stored: `with` as a whole model saves
    /// them, or nothing as a bare encoder does. `probe` is a name that every encoder has.
    pub fn prefix<'a>(&self, with: &'a str, probe: &str) -> Result<&'a str, TorchLoadError> {
        let full = format!("{with}{probe}");
        if self.has(&full) {
            Ok(with)
        } else if self.has(probe) {
            Ok("")
        } else {
            Err(TorchLoadError::MissingTensor { name: full })
        }
    }

    /// Reads tensor `name`, which must have `shape`.
    pub fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        place: Place,
    ) -> Result<Tensor, TorchLoadError> {
        self.stacked(&[(name, 1.0)], shape, place)
    }

    /// Reads tensors that all have `shape`, each multiplied by its factor, into one tensor, one
    /// below the other along the first dimension.
    pub fn stacked(
        &self,
        parts: &[(&str, f64)],
        shape: &[usize],
        place: Place,
    ) -> Result<Tensor, TorchLoadError> {
        // All are checked before the first is given memory: the shape may be far larger than
        // anything the files hold.
        let found: Vec<_> = parts
            .iter()
            .map(|&(name, factor)| Ok((name, factor, self.checked(name, shape)?)))
            .collect::<Result<_, TorchLoadError>>()?;
        let mut size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let rows = size[0];
        size[0] *= parts.len() as i64;
        let target = Tensor::f_empty(&size, (place.kind, place.device))?;
        for (index, (name, factor, (stored, kind))) in (0_i64..).zip(found) {
            let mut part = target.f_narrow(0, index * rows, rows)?;
            self.copy(name, stored, kind, factor, &mut part)?;
        }
        Ok(target)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<(&Stored, Kind), TorchLoadError> {
        let stored = self
            .find(name)
            .ok_or_else(|| TorchLoadError::MissingTensor {
                name: name.to_owned(),
            })?;
        if stored.shape != shape {
            return Err(TorchLoadError::Shape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                got: stored.shape.clone(),
            });
        }
        let kind = stored
            .kind
            .clone()
            .map_err(|got| TorchLoadError::StorageFormat {
                name: name.to_owned(),
                got,
            })?;
        Ok((stored, kind))
    }

    /// Finds a tensor by its name or, for layer normalisation, by the one that early models used.
    fn find(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name).or_else(|| {
            let old = match name.rsplit_once('.')? {
                (stem, "weight") => format!("{stem}.gamma"),
                (stem, "bias") => format!("{stem}.beta"),
                _ => return None,
            };
            self.tensors.get(&old)
        })
    }

    /// Copies a stored tensor into `target`, in pieces of whole rows.
    fn copy(
        &self,
        name: &str,
        stored: &Stored,
        kind: Kind,
        factor: f64,
        target: &mut Tensor,
    ) -> Result<(), TorchLoadError> {
        let WeightFile { path, file } = &self.files[stored.file];
        let rows = stored.shape[0];
        let row_size: Vec<i64> = stored.shape[1..].iter().map(|&n| n as i64).collect();
        let row_bytes = stored.shape[1..].iter().product::<usize>() * kind.elt_size_in_bytes();
        let piece_rows = (PIECE_BYTES_MAX / row_bytes.max(1)).clamp(1, rows.max(1));
        let mut bytes = vec![0_u8; piece_rows * row_bytes];
        for row in (0..rows).step_by(piece_rows) {
            let count = piece_rows.min(rows - row);
            let bytes = &mut bytes[..count * row_bytes];
            let offset = stored.offset + (row * row_bytes) as u64;
            file.read_exact_at(bytes, offset).map_err(|source| {
                tracing::debug!(tensor = name, offset, "a weight file ended early");
                TorchLoadError::Read {
                    path: path.clone(),
                    source,
                }
            })?;
            let mut size = vec![count as i64];
            size.extend_from_slice(&row_size);
            let mut piece = Tensor::f_from_data_size(bytes, &size, kind)?;
            if factor != 1.0 {
                // Scaled in 32 bits, so that a half format rounds once and not twice.
                piece = piece.f_to_kind(Kind::Float)?.f_mul_scalar(factor)?;
            }
            target
                .f_narrow(0, row as i64, count as i64)?
                .f_copy_(&piece)?;
        }
        Ok(())
    }
}

/// Reads and checks a file's header: where the data starts, and what it holds.
fn read_header(path: &Path, file: &mut File, size: u64) -> Result<(u64, Metadata), TorchLoadError> {
    let fail = |source| TorchLoadError::Read {
        path: path.to_owned(),
        source,
    };
    let invalid = |reason: String| TorchLoadError::Safetensors {
        path: path.to_owned(),
        reason,
    };
    let mut start = Vec::new();
    file.take(LENGTH_BYTES + 1)
        .read_to_end(&mut start)
        .map_err(fail)?;
    // A pickle, or the zip archive that PyTorch wraps one in. A safetensors header opens with a
    // brace, so that a header length which happens to look like a pickle does not mislead.
    if start.get(8) != Some(&b'{')
        && (start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80"))
    {
        return Err(TorchLoadError::Pickle {
            path: path.to_owned(),
        });
    }
    let Some(length) = start
        .first_chunk::<8>()
        .map(|bytes| u64::from_le_bytes(*bytes))
    else {
        return Err(invalid(format!("{size} bytes are too few for a header")));
    };
    if length > HEADER_BYTES_MAX || length > size - LENGTH_BYTES {
        return Err(invalid(format!(
            "a header of {length} bytes in a file of {size}"
        )));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, LENGTH_BYTES)
        .map_err(fail)?;
    // Refuses gaps, overlaps, overflows and shapes that disagree with their byte ranges.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| invalid(error.to_string()))?;
    let data_start = LENGTH_BYTES + length;
    let expected = data_start.checked_add(metadata.data_len() as u64);
    if expected != Some(size) {
        return Err(invalid(format!(
            "the header describes {} bytes of data, but {} follow it",
            metadata.data_len(),
            size - data_start,
        )));
    }
    Ok((data_start, metadata))
}

fn kind_of(dtype: Dtype) -> Result<Kind, String> {
    match dtype {
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        other => Err(format!("{other:?}")),
    }
}
