//! Named places where a test may stop, delay or fail a process: between every two steps that a crash can part.
//!
//! `BALSA_FAILPOINTS="name=action;name=action"` arms them, with the actions of the `fail` crate: `return` ends the process
//! at once, as kill -9 would; `return(text)` is a failure of the disk; `sleep(ms)` a slow one; `3*off->return` spares the
//! first three times. Without the variable each place costs a read of a flag that never changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::gofail;
use crate::storage::{Result, StorageError};

/// The variable that arms them.
const VARIABLE: &str = "BALSA_FAILPOINTS";

/// All places. A name that is not here is refused, so that no test waits for what cannot happen.
pub const NAMES: [&str; 20] = [
    // The driver's batch: about to write the log; written and synced, nothing sent; everything of it sent.
    "raft-before-persist",
    "raft-after-persist",
    "raft-after-batch",
    // The applier: about to write a run of entries; written, nobody answered yet.
    "apply-before-write",
    "apply-after-write",
    // A part of a large delete is about to be written.
    "apply-part",
    // A run that changed the membership is written, its commands answered, and Raft not told; Raft was told.
    "change-before-raft",
    "change-after-raft",
    // A received snapshot: complete on the disk; the log about to name it; the log names it; the applier has switched.
    "snapshot-received",
    "snapshot-before-switch",
    "snapshot-after-switch",
    "snapshot-opened",
    // A checkpoint for a peer is made.
    "checkpoint-made",
    // The keeper: about to flush the key space; flushed, and the log not trimmed.
    "flush-before",
    "flush-after",
    // A disk that becomes a member's: the stores are written, the marker is not; it is.
    "found-before-marker",
    "found-after-marker",
    // A member that is forced to be alone: the log about to say so; it says so, and nothing of it is applied; all is flushed.
    "force-before-write",
    "force-after-write",
    "force-after-flush",
];

/// How long an answer of the port that sets failpoints may take on its way, beside other processes that are busy too.
const ANSWER: Duration = Duration::from_millis(500);

static ARMED: AtomicBool = AtomicBool::new(false);

/// Arms what `text` names.
///
/// # Errors
/// An unknown name or action, in words.
pub fn arm(text: &str) -> std::result::Result<(), String> {
    for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
        let (name, action) = item.split_once('=').ok_or_else(|| format!("{item:?} is not name=action"))?;
        if !NAMES.contains(&name) {
            return Err(format!("there is no failpoint {name:?}"));
        }
        fail::cfg(name, action).map_err(|error| format!("failpoint {name}: {error}"))?;
    }
    ARMED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Arms what the environment names, if it does.
///
/// # Errors
/// See [`arm`].
pub fn arm_from_environment() -> std::result::Result<(), String> {
    let Some(text) = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()) else { return Ok(()) };
    arm(&text).map_err(|error| format!("{VARIABLE}: {error}"))?;
    tracing::warn!(failpoints = text, "failpoints are armed: this process is meant to fail");
    Ok(())
}

/// One of the places.
///
/// # Errors
/// `Failed`, if a test asked for it.
#[inline]
pub(crate) fn hit(name: &'static str) -> Result<()> {
    if ARMED.load(Ordering::Relaxed) { evaluate(name) } else { Ok(()) }
}

/// Sets one place under another name, which [`gofail`] has for it.
pub(super) fn set(name: &'static str, actions: &str) -> std::result::Result<(), String> {
    fail::cfg(name, actions)?;
    ARMED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Takes it back.
pub(super) fn unset(name: &'static str) {
    fail::remove(name);
}

#[cold]
fn evaluate(name: &'static str) -> Result<()> {
    for of_etcd in gofail::of_place(name) {
        if asked(of_etcd).is_some() {
            // Whoever has just set it is answered first.
            std::thread::sleep(ANSWER);
            eprintln!("failpoint panic: {of_etcd}");
            std::process::abort();
        }
    }
    let Some(text) = asked(name) else { return Ok(()) };
    if text.is_empty() {
        eprintln!("failpoint {name}: the process ends here");
        std::process::abort();
    }
    Err(StorageError::Failed { what: format!("failpoint {name}"), cause: text })
}

/// What the action returns, if it returns.
fn asked(name: &'static str) -> Option<String> {
    fail::fail_point!(name, |text| Some(text.unwrap_or_default()));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_and_actions_are_refused() {
        assert_eq!(arm("nowhere=return").unwrap_err(), "there is no failpoint \"nowhere\"");
        assert!(arm("flush-before").unwrap_err().contains("is not name=action"));
        assert!(arm("flush-before=explode").unwrap_err().starts_with("failpoint flush-before: "));
    }

    #[test]
    fn a_place_that_is_not_armed_does_nothing() {
        for name in NAMES {
            assert_eq!(asked(name), None);
        }
    }
}
