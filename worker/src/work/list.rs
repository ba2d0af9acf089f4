//! A list of some rows of a shard, read beside the shard's rows.

use std::collections::VecDeque;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use millrace_protocol::ledger::place_of;
use millrace_protocol::row::ReadRow;

use crate::records::{self, RecordsError};
use crate::store::{Location, StoreError};

/// Records of `N` bytes that begin with a place, in the order of their places.
pub struct RowList<const N: usize> {
    list: BoxStream<'static, Result<Vec<[u8; N]>, StoreError>>,
    read: VecDeque<[u8; N]>,
}

impl<const N: usize> RowList<N> {
    /// Opens a list by its path below the output.
    pub async fn open(output: &Location, relative_path: &str) -> Result<Self, RecordsError> {
        let list = records::read(output, relative_path).await?;
        Ok(Self {
            list: list.boxed(),
            read: VecDeque::new(),
        })
    }

    /// Those among `rows` that the list names, by their index. `rows` follow those of the call before.
    pub async fn among(&mut self, rows: &[ReadRow]) -> Result<Vec<(usize, [u8; N])>, StoreError> {
        let mut found = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            while let Some(listed) = self.next().await? {
                let place = place_of(&listed);
                if place > row.place() {
                    break;
                }
                // One that stands before it is not asked about any more, so it is not missed.
                self.read.pop_front();
                if place == row.place() {
                    found.push((index, listed));
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The next record, which stays there.
    async fn next(&mut self) -> Result<Option<[u8; N]>, StoreError> {
        while self.read.is_empty() {
            let Some(records) = self.list.try_next().await? else {
                return Ok(None);
            };
            self.read.extend(records);
        }
        Ok(self.read.front().copied())
    }
}
