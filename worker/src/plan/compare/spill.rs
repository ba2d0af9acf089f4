//! Records of one length in temporary files that are gone with the process.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, Write};

/// Bytes of a file that are read or written at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// Files of records of `N` bytes.
pub(in crate::plan) struct Spill<const N: usize> {
    files: Vec<BufWriter<File>>,
}

impl<const N: usize> Spill<N> {
    /// Makes the files.
    pub(in crate::plan) fn new(files: usize) -> io::Result<Self> {
        let file = || {
            Ok(BufWriter::with_capacity(
                BUFFER_BYTES,
                tempfile::tempfile()?,
            ))
        };
        let files = (0..files).map(|_| file()).collect::<io::Result<_>>()?;
        Ok(Self { files })
    }

    /// Appends a record to a file.
    pub(in crate::plan) fn put(&mut self, file: usize, record: &[u8; N]) -> io::Result<()> {
        self.files[file].write_all(record)
    }

    /// The files, each to be read from its start.
    pub(in crate::plan) fn into_files(self) -> io::Result<Vec<Records<N>>> {
        let files = self.files.into_iter().map(|file| {
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            let file = BufReader::with_capacity(BUFFER_BYTES, file);
            Ok(Records { file })
        });
        files.collect()
    }
}

/// The records of one file, in the order in which they were put.
pub(in crate::plan) struct Records<const N: usize> {
    file: BufReader<File>,
}

impl<const N: usize> Iterator for Records<N> {
    type Item = io::Result<[u8; N]>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut record = [0; N];
        match self.file.read_exact(&mut record) {
            Ok(()) => Some(Ok(record)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => None,
            Err(error) => Some(Err(error)),
        }
    }
}
