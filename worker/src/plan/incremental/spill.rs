//! Records of one length, spread over temporary files, so that memory holds one file's at a time.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};

/// Records of `N` bytes, in files that are gone with the process.
pub(super) struct Spill<const N: usize> {
    files: Vec<BufWriter<File>>,
}

impl<const N: usize> Spill<N> {
    /// Makes the files.
    pub(super) fn new(files: usize) -> io::Result<Self> {
        let files = (0..files).map(|_| Ok(BufWriter::new(tempfile::tempfile()?)));
        let files = files.collect::<io::Result<_>>()?;
        Ok(Self { files })
    }

    /// Appends a record to a file.
    pub(super) fn put(&mut self, file: usize, record: &[u8; N]) -> io::Result<()> {
        self.files[file].write_all(record)
    }

    /// Hands out the files, whole and in order.
    pub(super) fn into_files(self) -> impl Iterator<Item = io::Result<Records<N>>> {
        self.files.into_iter().map(|file| {
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(Records { bytes })
        })
    }
}

/// The records of one file.
pub(super) struct Records<const N: usize> {
    bytes: Vec<u8>,
}

impl<const N: usize> Records<N> {
    /// In the order in which they were put.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8; N]> {
        self.bytes.as_chunks::<N>().0.iter()
    }
}
