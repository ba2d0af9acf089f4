//! The tier on this machine's disk, which outlives the process: one file for each answer.
//!
//! An entry is written beside its place and renamed, and carries a hash over all of it, so that whatever
//! a crash or a disk leaves of it is a miss. One process at a time uses a folder. Memory is bounded with
//! the folder: an index of what is there counts each entry for at least a block.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use millrace_protocol::wire::Prediction;
use moka::{notification::RemovalCause, policy::EvictionPolicy};
use sha2::{Digest, Sha256};

use super::writes::{Write, Writes, WritesOptions};
use super::{Key, Lookups};

/// What an entry takes of a disk at least.
const BLOCK_BYTES: u32 = 4_096;

/// What waits is some 30 MB of small embeddings.
const WRITES: WritesOptions = WritesOptions {
    waiting_max: 16_384,
    at_once_max: 256,
};

/// Begins the names of files that are being written.
const UNFINISHED: &str = "unfinished-";

/// Of each entry: when it was written, in milliseconds since 1970, and the hash.
const HEAD_BYTES: usize = 8 + 32;

/// Why a folder cannot hold answers.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot hold kept answers", path.display())]
pub struct DiskError {
    path: PathBuf,
    source: io::Error,
}

/// Where answers are kept on disk.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The folder, of this tier alone. It is made where it is missing.
    pub folder: PathBuf,
    /// Most bytes in it; what was used least lately goes first.
    pub bytes_max: u64,
}

/// The tier.
pub struct Disk {
    entries: Arc<Entries>,
    writes: Writes,
}

/// The files and what is known of them. All of it blocks.
struct Entries {
    folder: PathBuf,
    /// Sizes of the entries that are there. What it forgets is deleted.
    index: moka::sync::Cache<Key, u32>,
    ttl: Duration,
    /// Set by the first write that fails: a disk that is full or gone is said once, and left alone.
    is_broken: AtomicBool,
    lookups: Lookups,
    /// Held as long as the folder is used.
    _lock: File,
}

impl Disk {
    /// The tier in a folder, with what an earlier process left there; nothing while another process uses
    /// it. Needs a runtime.
    pub async fn open(
        options: DiskOptions,
        ttl: Duration,
        lookups: Lookups,
    ) -> Result<Option<Self>, DiskError> {
        let opened = tokio::task::spawn_blocking(move || Entries::open(options, ttl, lookups));
        let Some(entries) = opened.await.expect("opening a folder does not panic")? else {
            return Ok(None);
        };
        let entries = Arc::new(entries);
        let written = entries.clone();
        let writes = Writes::new(WRITES, move |answers| write(written.clone(), answers));
        Ok(Some(Self { entries, writes }))
    }

    /// What the disk knows of each key.
    pub(super) async fn get(&self, keys: &[Key]) -> Vec<Option<Arc<Prediction>>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let (entries, asked) = (self.entries.clone(), keys.to_vec());
        let found = tokio::task::spawn_blocking(move || {
            let found = asked.into_iter().map(|key| entries.get(key));
            found.collect::<Vec<_>>()
        });
        // A thread that panicked knows nothing.
        found.await.unwrap_or_else(|_| vec![None; keys.len()])
    }

    /// Writes an answer, some time. Never waits.
    pub(super) fn put(&self, key: Key, answer: &Arc<Prediction>) {
        self.writes.put(key, answer);
    }

    /// Waits until what was put before is written, and what had to go for it is gone.
    pub(super) async fn flush(&self) {
        self.writes.flush().await;
    }
}

async fn write(entries: Arc<Entries>, answers: Vec<Write>) -> bool {
    let written = tokio::task::spawn_blocking(move || {
        for (key, answer) in answers {
            entries.put(key, &answer);
        }
        entries.index.run_pending_tasks();
    });
    written.await.is_ok()
}

impl Entries {
    fn open(
        options: DiskOptions,
        ttl: Duration,
        lookups: Lookups,
    ) -> Result<Option<Self>, DiskError> {
        let DiskOptions { folder, bytes_max } = options;
        let failed = |source| DiskError {
            path: folder.clone(),
            source,
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        let lock = File::create(folder.join(".lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                tracing::warn!(
                    folder = %folder.display(),
                    "another process keeps its answers there; this one keeps none on disk"
                );
                return Ok(None);
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let found = found(&folder).map_err(failed)?;
        let forgotten = folder.clone();
        let index = moka::sync::Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_, bytes: &u32| (*bytes).max(BLOCK_BYTES))
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(ttl)
            .eviction_listener(move |key: Arc<Key>, _, cause| {
                if cause != RemovalCause::Replaced {
                    // It may be gone already.
                    fs::remove_file(place(&forgotten, &key)).ok();
                }
            })
            .build();
        for (_, key, bytes) in found {
            index.insert(key, bytes);
        }
        index.run_pending_tasks();
        Ok(Some(Self {
            folder,
            index,
            ttl,
            is_broken: AtomicBool::new(false),
            lookups,
            _lock: lock,
        }))
    }

    fn get(&self, key: Key) -> Option<Arc<Prediction>> {
        let answer = self.index.get(&key).and_then(|_| {
            let entry = fs::read(place(&self.folder, &key)).ok();
            let answer = entry.and_then(|entry| read(&key, &entry, SystemTime::now(), self.ttl));
            if answer.is_none() {
                self.index.invalidate(&key);
            }
            answer
        });
        self.lookups.note("disk", answer.is_some());
        answer.map(Arc::new)
    }

    fn put(&self, key: Key, answer: &Prediction) {
        if self.is_broken.load(Ordering::Relaxed) {
            return;
        }
        let entry = entry(&key, answer, SystemTime::now());
        let place = place(&self.folder, &key);
        // One thread writes, and no other process.
        let unfinished = self.folder.join(format!("{UNFINISHED}{}", key.to_hex()));
        let written = (|| {
            fs::create_dir_all(place.parent().expect("an entry lies in a folder"))?;
            fs::write(&unfinished, &entry)?;
            fs::rename(&unfinished, &place)
        })();
        match written {
            Ok(()) => self.index.insert(key, entry.len() as u32),
            Err(error) => {
                fs::remove_file(&unfinished).ok();
                self.is_broken.store(true, Ordering::Relaxed);
                tracing::warn!(%error, folder = %self.folder.display(), "no more answers are kept on disk");
            }
        }
    }
}

/// The entries of a folder, those written longest ago first. What was not finished is removed.
fn found(folder: &Path) -> io::Result<Vec<(SystemTime, Key, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
        if !entry.file_type()?.is_dir() {
            continue;
        }
        for entry in fs::read_dir(entry.path())? {
            let entry = entry?;
            let Some(key) = entry.file_name().to_str().and_then(Key::from_hex) else {
                continue;
            };
            let about = entry.metadata()?;
            let bytes = u32::try_from(about.len()).unwrap_or(u32::MAX);
            found.push((about.modified()?, key, bytes));
        }
    }
    found.sort_unstable_by_key(|(written, ..)| *written);
    Ok(found)
}

/// Where an entry lies: no folder holds all of them.
fn place(folder: &Path, key: &Key) -> PathBuf {
    let name = key.to_hex();
    folder.join(&name[..2]).join(name)
}

/// An entry as it is written: when, the hash, the answer.
fn entry(key: &Key, answer: &Prediction, now: SystemTime) -> Vec<u8> {
    let answer = rmp_serde::to_vec(answer).expect("an answer always has a MessagePack form");
    let written = millis(now).to_le_bytes();
    let mut entry = Vec::with_capacity(HEAD_BYTES + answer.len());
    entry.extend(written);
    entry.extend(hash(key, written, &answer));
    entry.extend(answer);
    entry
}

/// The answer of an entry that is whole, of this key and not too old.
fn read(key: &Key, entry: &[u8], now: SystemTime, ttl: Duration) -> Option<Prediction> {
    let (written, rest) = entry.split_first_chunk::<8>()?;
    let (hashed, answer) = rest.split_first_chunk::<32>()?;
    let age = millis(now).checked_sub(u64::from_le_bytes(*written))?;
    if age >= ttl.as_millis() as u64 || *hashed != hash(key, *written, answer) {
        return None;
    }
    let answer: Prediction = rmp_serde::from_slice(answer).ok()?;
    answer.is_finite().then_some(answer)
}

/// The key has a length of its own, and so has the time, so that no two entries run together.
fn hash(key: &Key, written: [u8; 8], answer: &[u8]) -> [u8; 32] {
    let hash = Sha256::new()
        .chain_update(key.to_hex())
        .chain_update(written)
        .chain_update(answer);
    hash.finalize().into()
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::super::Keys;
    use super::*;

    const TTL: Duration = Duration::from_secs(3_600);

    fn key(text: &str) -> Key {
        Keys::new(&[[0; 32]], true, &[text.to_owned()]).get(0)
    }

    fn answer(numbers: usize) -> Arc<Prediction> {
        Arc::new(Prediction::Embedding(vec![0.5; numbers]))
    }

    async fn open(folder: &Path, bytes_max: u64, ttl: Duration) -> Option<Disk> {
        let options = DiskOptions {
            folder: folder.to_owned(),
            bytes_max,
        };
        Disk::open(options, ttl, Lookups::default()).await.unwrap()
    }

    /// Bytes of all entries of a folder.
    fn bytes(folder: &Path) -> u64 {
        let found = found(folder).unwrap();
        found.iter().map(|(.., bytes)| u64::from(*bytes)).sum()
    }

    #[tokio::test]
    async fn answers_outlive_the_process_that_wrote_them() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path(), 1 << 20, TTL).await.unwrap();
        assert!(
            open(folder.path(), 1 << 20, TTL).await.is_none(),
            "a folder has one user"
        );
        disk.put(key("grain"), &answer(8));
        disk.flush().await;
        drop(disk);
        // The writer holds the folder until it is told of its end.
        let disk = loop {
            match open(folder.path(), 1 << 20, TTL).await {
                Some(disk) => break disk,
                None => tokio::task::yield_now().await,
            }
        };
        let found = disk.get(&[key("water"), key("grain")]).await;
        assert_eq!(found, [None, Some(answer(8))]);
    }

    #[tokio::test]
    async fn a_damaged_entry_is_a_miss_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path(), 1 << 20, TTL).await.unwrap();
        for damage in [
            |entry: &mut Vec<u8>| entry.truncate(entry.len() / 2),
            |entry: &mut Vec<u8>| *entry.last_mut().unwrap() ^= 1,
            |entry: &mut Vec<u8>| entry[0] ^= 1,
            |entry: &mut Vec<u8>| entry.clear(),
        ] {
            disk.put(key("grain"), &answer(8));
            disk.flush().await;
            let place = place(folder.path(), &key("grain"));
            let mut entry = fs::read(&place).unwrap();
            damage(&mut entry);
            fs::write(&place, entry).unwrap();
            assert_eq!(disk.get(&[key("grain")]).await, [None]);
            disk.entries.index.run_pending_tasks();
            assert!(!place.exists());
        }
        // Nor is the entry of another text one.
        disk.put(key("grain"), &answer(8));
        disk.put(key("water"), &answer(9));
        disk.flush().await;
        let (grain, water) = (key("grain"), key("water"));
        fs::rename(place(folder.path(), &grain), place(folder.path(), &water)).unwrap();
        assert_eq!(disk.get(&[water]).await, [None]);
    }

    #[tokio::test]
    async fn a_folder_stays_within_its_bytes_and_what_is_used_stays() {
        let folder = tempfile::tempdir().unwrap();
        let entries_max = 16;
        let bytes_max = entries_max * u64::from(BLOCK_BYTES);
        let disk = open(folder.path(), bytes_max, TTL).await.unwrap();
        for text in 0..100 {
            disk.put(key(&text.to_string()), &answer(8));
            disk.flush().await;
            assert_eq!(disk.get(&[key("0")]).await, [Some(answer(8))], "{text}");
        }
        assert!(found(folder.path()).unwrap().len() as u64 <= entries_max);
        drop(disk);
        let disk = loop {
            // A smaller bound holds for what is there already.
            match open(folder.path(), bytes_max / 4, TTL).await {
                Some(disk) => break disk,
                None => tokio::task::yield_now().await,
            }
        };
        assert!(found(folder.path()).unwrap().len() as u64 <= entries_max / 4);
        assert!(bytes(folder.path()) <= bytes_max / 4);
        drop(disk);
    }

    #[test]
    fn an_entry_counts_until_its_time_is_over() {
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let entry = entry(&key("grain"), &answer(8), written);
        let known = |after| read(&key("grain"), &entry, written + after, TTL).is_some();
        assert!(known(Duration::ZERO));
        assert!(known(TTL - Duration::from_secs(1)));
        assert!(!known(TTL));
        let before = read(&key("grain"), &entry, SystemTime::UNIX_EPOCH, TTL);
        assert!(before.is_none(), "a clock that was set back says nothing");
    }
}
