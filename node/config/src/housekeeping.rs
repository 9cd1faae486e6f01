//! How the log is trimmed and history compacted.

use std::time::Duration;

use super::ConfigError;
use super::sources::Raw;

/// How the log is trimmed and history compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Housekeeping {
    /// Applied entries after which the key space is flushed; none for bytes and time alone.
    pub snapshot_count: Option<u64>,
    /// Entries of the log that are kept for members that are behind.
    pub snapshot_catchup_entries: u64,
    /// Changes that one step of a compaction works off.
    pub compaction_batch_limit: usize,
    /// The pause between two such steps.
    pub compaction_sleep_interval: Duration,
}

pub(super) fn read(raw: &Raw) -> Result<Housekeeping, ConfigError> {
    Ok(Housekeeping {
        snapshot_count: snapshot_count(raw)?,
        snapshot_catchup_entries: raw.number("snapshot-catchup-entries")?,
        compaction_batch_limit: compaction_batch_limit(raw)?,
        compaction_sleep_interval: compaction_sleep_interval(raw)?,
    })
}

/// etcd's default is in many manifests, which mean nothing by it; so is 0.
fn snapshot_count(raw: &Raw) -> Result<Option<u64>, ConfigError> {
    Ok(Some(raw.number("snapshot-count")?).filter(|count| !matches!(count, 0 | 10_000)))
}

/// 0 means the default, as in etcd, where fewer than none make one step of all that there is.
fn compaction_batch_limit(raw: &Raw) -> Result<usize, ConfigError> {
    match raw.number::<i64>("compaction-batch-limit")? {
        0 => Ok(1_000),
        limit => Ok(usize::try_from(limit).unwrap_or(usize::MAX)),
    }
}

/// 0 means the default, as in etcd.
fn compaction_sleep_interval(raw: &Raw) -> Result<Duration, ConfigError> {
    match raw.text("compaction-sleep-interval").strip_prefix('-') {
        None => {
            let pause = raw.duration("compaction-sleep-interval")?;
            Ok(if pause.is_zero() { Duration::from_millis(2) } else { pause })
        }
        Some(_) => Ok(Duration::ZERO),
    }
}
