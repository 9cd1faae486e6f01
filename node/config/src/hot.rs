//! What of the configuration can change while the process runs: one value behind one pointer.
//!
//! A change is checked against the active version, validated as a whole together with everything that stays, kept on the
//! disk by the caller, and then swapped in one step: a reader sees the old settings or the new ones, never a mixture, and
//! a refused change leaves no trace. Two things change it: the file (its base), and a push, which stands on the base until
//! the base itself changes. It knows no file and no wire; `service/settings.rs` brings both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::sources::Raw;
use super::{Config, ConfigError, duration, flags, invalid};

/// A command must fit into one frame between members (64 MiB) with room to spare.
const MOST_REQUEST_BYTES: usize = 48 << 20;

/// When history is compacted without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Never.
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// All but this many revisions.
    Revision(i64),
}

/// The settings that can change at run time, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hot {
    /// Bytes that the key space may hold; 0 and below for no limit.
    pub quota_bytes: i64,
    /// Largest command in bytes.
    pub max_request_bytes: usize,
    /// Most operations of a transaction, nested ones included.
    pub max_txn_ops: usize,
    /// Most learners that etcd's own API may add. The operator's node service is not bound by it.
    pub max_learners: usize,
    /// Automatic compaction.
    pub auto_compaction: AutoCompaction,
    /// A `tracing` level name.
    pub log_level: String,
}

impl Hot {
    /// Gives the values types and checks them together.
    pub(super) fn check(raw: &Raw) -> Result<Self, ConfigError> {
        let max_request_bytes = max_request_bytes(raw)?;
        Ok(Self {
            quota_bytes: raw.number("quota-backend-bytes")?,
            max_request_bytes,
            max_txn_ops: positive(raw, "max-txn-ops")?,
            max_learners: max_learners(raw)?,
            auto_compaction: auto_compaction(raw)?,
            log_level: log_level(raw.text("log-level"))?,
        })
    }
}

/// The settings of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// Grows with every change; what nodes are compared by.
    pub version: u64,
    /// Fingerprint of all that should be equal on every member, the settings that cannot change included.
    pub hash: String,
    /// The settings.
    pub values: Hot,
    raw: Raw,
}

impl Active {
    fn new(version: u64, raw: Raw) -> Result<Self, ConfigError> {
        // Everything is checked again, so that a rule over several settings holds whichever of them changes.
        let config = Config::check(&raw)?;
        Ok(Self { version, hash: config.hash, values: config.hot, raw })
    }

    /// The settings as texts, by the names of their flags.
    pub fn texts(&self) -> BTreeMap<String, String> {
        flags::HOT.iter().map(|name| ((*name).to_owned(), self.raw.text(name).to_owned())).collect()
    }
}

/// What outlives the process: the last change, and the base that it was made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The active version.
    pub version: u64,
    /// What flags or the file said of the settings that can change.
    pub base: String,
    /// What was pushed on top; nothing when the last change was the file's.
    pub pushed: BTreeMap<String, String>,
}

/// Why a change is refused. The active settings stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The version is not above the active one, and not a repetition of it.
    #[error("version {offered} is not above the active version {active}: read the active settings and push again")]
    Stale {
        /// Of the change.
        offered: u64,
        /// Of this node.
        active: u64,
    },
    /// The settings are wrong, alone or together.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// It could not be kept, and a restart would undo it.
    #[error("the settings cannot be kept: {0}")]
    NotKept(String),
}

/// A push that was refused for what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What was pushed.
    pub settings: BTreeMap<String, String>,
    /// Why it was refused.
    pub error: ChangeError,
}

/// The active settings, and the only way to change them.
#[derive(Debug)]
pub struct HotConfig {
    active: ArcSwap<Active>,
    /// The last push that was refused for what it says, unless one was taken since.
    refused: Mutex<Option<Refused>>,
    /// What flags or the file say. Held for the length of a change, so that one is made at a time.
    base: Mutex<Raw>,
    versions: watch::Sender<u64>,
}

impl HotConfig {
    /// The settings that the process starts with: `config`'s, or what a change before the restart left of them. A change
    /// that was kept counts as long as the base is the one it was made on; a base that changed meanwhile is newer.
    pub fn new(config: &Config, kept: Option<&Kept>) -> Result<Self, ConfigError> {
        let raw = config.source.clone();
        let given: u64 = raw.number("config-version")?;
        let active = match kept {
            None => Active::new(given.max(1), raw.clone())?,
            Some(kept) if kept.base == base_of(&raw) => {
                Active::new(kept.version.max(given), overlaid(raw.clone(), &kept.pushed)?)?
            }
            Some(kept) => Active::new(given.max(kept.version.saturating_add(1)), raw.clone())?,
        };
        let (versions, _) = watch::channel(active.version);
        Ok(Self { active: ArcSwap::from_pointee(active), refused: Mutex::new(None), base: Mutex::new(raw), versions })
    }

    /// The active settings. One call sees one version: what belongs together is read from one guard.
    pub fn load(&self) -> Guard<Arc<Active>> {
        self.active.load()
    }

    /// Hears of each new version.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.versions.subscribe()
    }

    /// The last push, if it was refused for what it says.
    pub fn refused(&self) -> Option<Refused> {
        self.refused.lock().clone()
    }

    /// Changes the settings to the base with `pushed` on top. What is not named has the value of the base, whatever an
    /// earlier push said. The active version with the same settings is a repetition and succeeds without effect. `keep`
    /// makes the change outlive the process before anyone sees it.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn push(
        &self,
        version: u64,
        pushed: &BTreeMap<String, String>,
        keep: impl FnOnce(&Kept) -> Result<(), String>,
    ) -> Result<Arc<Active>, ChangeError> {
        let outcome = self.take(version, pushed, keep);
        match &outcome {
            Ok(_) => *self.refused.lock() = None,
            // Nothing was said about the settings: whoever pushes them again may be right.
            Err(ChangeError::Stale { .. } | ChangeError::NotKept(_)) => {}
            Err(error @ ChangeError::Invalid(_)) => {
                *self.refused.lock() = Some(Refused { settings: pushed.clone(), error: error.clone() })
            }
        }
        outcome
    }

    fn take(
        &self,
        version: u64,
        pushed: &BTreeMap<String, String>,
        keep: impl FnOnce(&Kept) -> Result<(), String>,
    ) -> Result<Arc<Active>, ChangeError> {
        let base = self.base.lock();
        let next = Active::new(version, overlaid(base.clone(), pushed)?)?;
        let active = self.active.load_full();
        if version == active.version && next.texts() == active.texts() {
            return Ok(active);
        }
        if version <= active.version {
            return Err(ChangeError::Stale { offered: version, active: active.version });
        }
        let kept = Kept { version, base: base_of(&base), pushed: pushed.clone() };
        keep(&kept).map_err(ChangeError::NotKept)?;
        Ok(self.swap(next))
    }

    /// Takes over what the file says now. A file without a `config-version` gets the next version. `None` when nothing
    /// that can change at run time has changed.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn rebase(
        &self,
        config: &Config,
        keep: impl FnOnce(&Kept) -> Result<(), String>,
    ) -> Result<Option<Arc<Active>>, ChangeError> {
        let mut base = self.base.lock();
        let raw = config.source.clone();
        if base_of(&raw) == base_of(&base) {
            return Ok(None);
        }
        let active = self.active.load_full();
        let version = match raw.number("config-version")? {
            0 => active.version.saturating_add(1),
            given if given <= active.version => {
                return Err(ChangeError::Stale { offered: given, active: active.version });
            }
            given => given,
        };
        // What cannot change at run time stays as the process was started with it.
        let merged = rebased(&base, &raw);
        let next = Active::new(version, merged.clone())?;
        let kept = Kept { version, base: base_of(&raw), pushed: BTreeMap::new() };
        keep(&kept).map_err(ChangeError::NotKept)?;
        *base = merged;
        Ok(Some(self.swap(next)))
    }

    /// The settings that differ in `config` and take effect only at a restart.
    pub fn needs_restart(&self, config: &Config) -> Vec<&'static str> {
        let base = self.base.lock();
        let cold = config.source.iter().filter(|(name, _)| !flags::HOT.contains(name) && *name != "config-version");
        cold.filter(|(name, value)| base.text(name) != *value).map(|(name, _)| name).collect()
    }

    fn swap(&self, next: Active) -> Arc<Active> {
        let next = Arc::new(next);
        self.active.store(next.clone());
        self.versions.send_replace(next.version);
        next
    }
}

/// `old` with what can change at run time from `new`.
fn rebased(old: &Raw, new: &Raw) -> Raw {
    let names = flags::HOT.iter().chain(&["config-version"]);
    names.fold(old.clone(), |raw, name| raw.with(name, new.text(name)))
}

/// What flags or the file say of the settings that can change.
fn base_of(raw: &Raw) -> String {
    let names = flags::HOT.iter().chain(&["config-version"]);
    names.map(|name| format!("{name}={}\n", raw.text(name))).collect()
}

fn overlaid(base: Raw, pushed: &BTreeMap<String, String>) -> Result<Raw, ConfigError> {
    pushed.iter().try_fold(base, |raw, (name, value)| match flags::HOT.iter().find(|hot| *hot == name) {
        Some(name) => Ok(raw.with(name, value)),
        None if flags::find(name).is_some() => Err(invalid(format!("--{name} cannot change at run time"))),
        None => Err(invalid(format!("--{name} is not a known setting"))),
    })
}

/// etcd starts without room for a command or an operation, and then carries none out.
fn positive(raw: &Raw, flag: &'static str) -> Result<usize, ConfigError> {
    match raw.number(flag)? {
        0 => Err(invalid(format!("--{flag} must not be 0"))),
        number => Ok(number),
    }
}

fn max_request_bytes(raw: &Raw) -> Result<usize, ConfigError> {
    match positive(raw, "max-request-bytes")? {
        bytes if bytes > MOST_REQUEST_BYTES => {
            Err(invalid(format!("--max-request-bytes={bytes} must not exceed {MOST_REQUEST_BYTES}")))
        }
        bytes => Ok(bytes),
    }
}

/// Below zero there are too many already, as etcd has it.
fn max_learners(raw: &Raw) -> Result<usize, ConfigError> {
    let most: i64 = raw.number("max-learners")?;
    usize::try_from(most)
        .map_err(|_| invalid("membership: too many learner members in cluster (--max-learners is negative)"))
}

/// A bare number means hours in periodic mode, as in etcd.
fn auto_compaction(raw: &Raw) -> Result<AutoCompaction, ConfigError> {
    let retention = raw.text("auto-compaction-retention");
    let wrong = |why: &dyn std::fmt::Display| invalid(format!("error parsing CompactionRetention: {why}"));
    match (raw.text("auto-compaction-mode"), retention) {
        ("periodic" | "revision", "0" | "") => Ok(AutoCompaction::Off),
        ("periodic", text) => {
            let period = match text.parse::<u32>() {
                Ok(hours) => Duration::from_secs(u64::from(hours) * 3600),
                Err(_) => duration::parse(text).map_err(|error| wrong(&error))?,
            };
            match (period.is_zero(), text.starts_with('-')) {
                (true, true) => Err(wrong(&format!("{text:?} is negative"))),
                (true, false) => Ok(AutoCompaction::Off),
                _ => Ok(AutoCompaction::Periodic(period)),
            }
        }
        ("revision", text) => match text.parse().ok().filter(|revisions| *revisions > 0) {
            Some(revisions) => Ok(AutoCompaction::Revision(revisions)),
            None => Err(match duration::parse(text) {
                Err(error) => wrong(&error),
                Ok(_) => wrong(&format!("{text:?} is not a number of revisions")),
            }),
        },
        ("", _) => Err(invalid("undefined auto-compaction-mode")),
        (mode, _) => Err(invalid(format!("unknown auto-compaction-mode {mode:?}"))),
    }
}

/// zap's levels in capitals or not, as in etcd, and none for `info`; `warning` is a word of 3.7.
fn log_level(level: &str) -> Result<String, ConfigError> {
    match level.to_lowercase().as_str() {
        "" => Ok("info".to_owned()),
        level @ ("debug" | "info" | "warn" | "error") => Ok(level.to_owned()),
        "warning" => Ok("warn".to_owned()),
        // zap's further levels are all errors here.
        "dpanic" | "panic" | "fatal" => Ok("error".to_owned()),
        _ => Err(invalid(format!("--log-level={level} must be debug, info, warn, error, panic or fatal"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::load;

    fn hot(args: &[&str]) -> HotConfig {
        HotConfig::new(&load(args).unwrap(), None).unwrap()
    }

    fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn kept(_: &Kept) -> Result<(), String> {
        Ok(())
    }

    #[test]
    fn retention_of_a_bare_number_is_hours() {
        let retention = |args: &[&str]| load(args).map(|config| config.hot.auto_compaction);
        assert_eq!(retention(&[]), Ok(AutoCompaction::Off));
        let hours = Duration::from_secs(7200);
        assert_eq!(retention(&["--auto-compaction-retention=2"]), Ok(AutoCompaction::Periodic(hours)));
        assert_eq!(retention(&["--auto-compaction-retention=2h"]), Ok(AutoCompaction::Periodic(hours)));
        let args = ["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"];
        assert_eq!(retention(&args), Ok(AutoCompaction::Revision(1000)));
        assert_eq!(retention(&["--auto-compaction-retention=0h"]), Ok(AutoCompaction::Off));
        assert!(retention(&["--auto-compaction-mode=nonsense"]).is_err());
        let error = retention(&["--auto-compaction-retention=x"]).unwrap_err().to_string();
        assert_eq!(error, "error parsing CompactionRetention: time: invalid duration \"x\"");
        assert!(retention(&["--auto-compaction-retention=-1h"]).is_err(), "all history would go at once");
    }

    #[test]
    fn bounds_have_bounds() {
        assert_eq!(load(&["--quota-backend-bytes=-1"]).map(|config| config.hot.quota_bytes), Ok(-1));
        assert!(matches!(load(&["--quota-backend-bytes=x"]), Err(ConfigError::Usage(_))));
        assert!(load(&["--max-request-bytes=50331649"]).is_err(), "no frame would carry it");
        assert!(load(&["--max-txn-ops=0"]).is_err());
        assert_eq!(load(&["--max-learners=0"]).unwrap().hot.max_learners, 0, "none is a bound too");
        assert!(matches!(load(&["--max-learners=-1"]), Err(ConfigError::Invalid(_))));
    }

    #[test]
    fn a_push_stands_on_the_base_not_on_the_push_before() {
        let hot = hot(&["--max-txn-ops=10", "--max-learners=2"]);
        let first = hot.load().hash.clone();
        assert_eq!(hot.load().version, 1);
        hot.push(2, &texts(&[("max-txn-ops", "20")]), kept).unwrap();
        assert_eq!((hot.load().version, hot.load().values.max_txn_ops), (2, 20));
        assert_ne!(hot.load().hash, first, "the fingerprint is of what is active");
        hot.push(7, &texts(&[("max-learners", "3")]), kept).unwrap();
        let active = hot.load();
        assert_eq!((active.values.max_txn_ops, active.values.max_learners, active.version), (10, 3, 7));
    }

    #[test]
    fn a_version_is_taken_once_and_may_be_repeated() {
        let hot = hot(&[]);
        let push = |version, value| hot.push(version, &texts(&[("max-txn-ops", value)]), kept).map(|a| a.version);
        assert_eq!(push(5, "20"), Ok(5));
        assert_eq!(push(5, "20"), Ok(5), "a repetition");
        assert_eq!(push(5, "30"), Err(ChangeError::Stale { offered: 5, active: 5 }));
        assert_eq!(push(4, "20"), Err(ChangeError::Stale { offered: 4, active: 5 }));
        assert_eq!(hot.load().values.max_txn_ops, 20);
    }

    #[test]
    fn a_bad_change_leaves_everything_as_it_was() {
        let hot = hot(&["--max-txn-ops=10"]);
        let versions = hot.versions();
        let before = hot.load().clone();
        for bad in [
            &[("max-txn-ops", "20"), ("log-level", "loud")][..],
            &[("max-txn-ops", "20"), ("heartbeat-interval", "5")],
            &[("max-txn-ops", "20"), ("nonsense", "5")],
            &[("auto-compaction-mode", "revision"), ("auto-compaction-retention", "1h")],
        ] {
            let refused = hot.push(2, &texts(bad), |_| panic!("a refused change is not kept"));
            assert!(matches!(refused, Err(ChangeError::Invalid(_))), "{bad:?}");
        }
        let said = hot.refused();
        let refused = hot.push(2, &texts(&[("max-txn-ops", "20")]), |_| Err("disk full".into()));
        assert!(matches!(refused, Err(ChangeError::NotKept(_))));
        assert!(said.is_some() && hot.refused() == said, "a full disk says nothing about the settings");
        assert_eq!(*hot.load(), before);
        assert!(!versions.has_changed().unwrap());
    }

    #[test]
    fn the_file_changes_the_base_and_ends_a_push() {
        let hot = hot(&["--max-txn-ops=10"]);
        hot.push(3, &texts(&[("max-txn-ops", "20")]), kept).unwrap();
        assert_eq!(hot.rebase(&load(&["--max-txn-ops=10", "--name=b"]).unwrap(), kept), Ok(None), "nothing of ours");
        let file = load(&["--max-txn-ops=30", "--heartbeat-interval=50"]).unwrap();
        assert_eq!(hot.needs_restart(&file), ["heartbeat-interval"]);
        let active = hot.rebase(&file, kept).unwrap().unwrap();
        assert_eq!((active.version, active.values.max_txn_ops), (4, 30));
        let stale = load(&["--max-txn-ops=40", "--config-version=4"]).unwrap();
        assert_eq!(hot.rebase(&stale, kept), Err(ChangeError::Stale { offered: 4, active: 4 }));
        let next = load(&["--max-txn-ops=40", "--config-version=9"]).unwrap();
        assert_eq!(hot.rebase(&next, kept).unwrap().unwrap().version, 9);
    }

    #[test]
    fn a_change_outlives_a_restart_unless_the_base_changed_meanwhile() {
        let (mut disk, config) = (None, load(&["--max-txn-ops=10"]).unwrap());
        let hot = HotConfig::new(&config, None).unwrap();
        let pushed = texts(&[("max-txn-ops", "20")]);
        hot.push(3, &pushed, |kept| {
            disk = Some(kept.clone());
            Ok(())
        })
        .unwrap();
        let again = HotConfig::new(&config, disk.as_ref()).unwrap();
        assert_eq!((again.load().version, again.load().values.max_txn_ops), (3, 20));
        let edited = HotConfig::new(&load(&["--max-txn-ops=11"]).unwrap(), disk.as_ref()).unwrap();
        assert_eq!((edited.load().version, edited.load().values.max_txn_ops), (4, 11));
    }

    #[test]
    fn readers_never_see_a_half() {
        let hot = Arc::new(hot(&[]));
        let reader = {
            let hot = hot.clone();
            std::thread::spawn(move || {
                loop {
                    let active = hot.load();
                    let (ops, bytes) = (active.values.max_txn_ops, active.values.max_request_bytes);
                    assert!(active.version == 1 || (ops == bytes && ops as u64 == active.version), "{active:?}");
                    if active.version == 500 {
                        return;
                    }
                }
            })
        };
        for version in 2..=500 {
            let value = version.to_string();
            hot.push(version, &texts(&[("max-txn-ops", &value), ("max-request-bytes", &value)]), kept).unwrap();
        }
        reader.join().unwrap();
    }
}
