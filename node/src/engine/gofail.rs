//! Failpoints under etcd's names and in the language of its library for them (gofail), so that what makes an etcd fail makes
//! a member fail at the same places: `GOFAIL_FAILPOINTS="name=terms;…"`, and `GOFAIL_HTTP` for a port that sets them while the
//! process runs (`api/gofail_http.rs`).
//!
//! A name is here when `failpoint.rs` has a place that means the same: between the same two steps, as far as a crash can tell.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;

use super::failpoint;

/// The variable that sets them from the start.
const VARIABLE: &str = "GOFAIL_FAILPOINTS";

/// etcd's names, each with the place of ours.
const PLACES: [(&str, &str); 9] = [
    // The log is about to be written; it is.
    ("raftBeforeSave", "raft-before-persist"),
    ("raftAfterSave", "raft-after-persist"),
    // A follower has written, and not answered its leader.
    ("raftBeforeFollowerSend", "raft-after-persist"),
    // What the entries say is about to be written to the key space; it is.
    ("beforeCommit", "apply-before-write"),
    ("afterCommit", "apply-after-write"),
    // The log is about to name a snapshot that was received; it does, and nothing of it is in use; it is.
    ("raftBeforeSaveSnap", "snapshot-before-switch"),
    ("raftAfterSaveSnap", "snapshot-after-switch"),
    ("applyBeforeOpenSnapshot", "snapshot-after-switch"),
    ("raftAfterApplySnap", "snapshot-opened"),
];

/// Why a failpoint is not set or shown, in the library's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such name.
    #[error("failpoint: failpoint does not exist")]
    Unknown,
    /// It is not set.
    #[error("failpoint: failpoint is disabled")]
    Disabled,
    /// Terms that say nothing.
    #[error("failpoint: could not parse terms")]
    BadTerms,
}

static SET: LazyLock<Mutex<BTreeMap<&'static str, String>>> = LazyLock::new(Mutex::default);

/// Those of etcd's names that a place of ours has.
pub(super) fn of_place(place: &str) -> impl Iterator<Item = &'static str> {
    PLACES.into_iter().filter(move |(_, ours)| *ours == place).map(|(name, _)| name)
}

/// All names, each with its terms, which are empty when it is not set.
pub fn list() -> BTreeMap<&'static str, String> {
    let set = SET.lock();
    PLACES.iter().map(|(name, _)| (*name, set.get(name).cloned().unwrap_or_default())).collect()
}

/// Sets one.
///
/// # Errors
/// [`Refused`].
pub fn enable(name: &str, terms: &str) -> Result<(), Refused> {
    let name = known(name)?;
    let actions = translated(terms).ok_or(Refused::BadTerms)?;
    failpoint::set(name, &actions).map_err(|_| Refused::BadTerms)?;
    SET.lock().insert(name, terms.to_owned());
    tracing::warn!(failpoint = name, terms, "a failpoint is set: this process is meant to fail");
    Ok(())
}

/// Takes one back.
///
/// # Errors
/// [`Refused`].
pub fn disable(name: &str) -> Result<(), Refused> {
    let name = known(name)?;
    SET.lock().remove(name).ok_or(Refused::Disabled)?;
    failpoint::unset(name);
    Ok(())
}

/// The terms of one.
///
/// # Errors
/// [`Refused`].
pub fn status(name: &str) -> Result<String, Refused> {
    let name = known(name)?;
    SET.lock().get(name).cloned().ok_or(Refused::Disabled)
}

/// Sets those that the environment names. What is no name of ours is read over, as etcd does.
///
/// # Errors
/// It is not `name=terms;…`, in the library's words.
pub fn arm_from_environment() -> Result<(), String> {
    arm(&std::env::var(VARIABLE).unwrap_or_default())
}

fn arm(text: &str) -> Result<(), String> {
    for item in text.split(';').filter(|item| !item.is_empty()) {
        let parts: Vec<_> = item.split('=').collect();
        let [name, terms] = parts[..] else { return Err(format!("fail to parse failpoint: bad failpoint {item:?}")) };
        if let Err(refused @ (Refused::BadTerms | Refused::Disabled)) = enable(name, terms) {
            tracing::warn!(name, terms, error = %refused, "a failpoint is not set");
        }
    }
    Ok(())
}

fn known(name: &str) -> Result<&'static str, Refused> {
    PLACES.iter().find(|(known, _)| *known == name).map(|(known, _)| *known).ok_or(Refused::Unknown)
}

/// Terms as the crate `fail` has them. To panic is to end the process, as in etcd, of which nobody catches one.
fn translated(terms: &str) -> Option<String> {
    let translated: Option<Vec<_>> = terms.split("->").map(term).collect();
    translated.map(|terms| terms.join("->"))
}

fn term(text: &str) -> Option<String> {
    let (mut rest, mut chance, mut count) = (text, String::new(), String::new());
    while rest.starts_with(|c: char| c.is_ascii_digit()) {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(end);
        match behind.chars().next()? {
            '%' => chance = format!("{}%", number.parse::<f32>().ok()?),
            '*' => count = format!("{}*", number.parse::<usize>().ok()?),
            _ => return None,
        }
        rest = &behind[1..];
    }
    let (action, value) = match rest.split_once('(') {
        Some((action, value)) => (action, value.strip_suffix(')')?),
        None => (rest, ""),
    };
    let action = match action {
        "off" | "print" => action.to_owned(),
        "panic" => "return".to_owned(),
        "sleep" => format!("sleep({})", milliseconds(value)?),
        // Nothing here takes a value, and there is no debugger to break into.
        _ => return None,
    };
    Some(format!("{chance}{count}{action}"))
}

/// A number of them, or a duration in quotes.
fn milliseconds(value: &str) -> Option<u64> {
    let Some(quoted) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) else {
        return value.parse().ok();
    };
    let end = quoted.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = quoted.split_at(end);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    let duration = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
    u64::try_from(duration.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_gofails() {
        for (terms, expected) in [
            ("panic", "return"),
            ("panic(\"x\")", "return"),
            ("sleep(100)", "sleep(100)"),
            ("sleep(\"1.5s\")", "sleep(1500)"),
            ("off", "off"),
            ("3*off->panic", "3*off->return"),
            ("50.0%2*sleep(\"1m\")", "50%2*sleep(60000)"),
        ] {
            assert_eq!(translated(terms).as_deref(), Some(expected), "{terms}");
        }
        for bad in ["", "explode", "sleep", "sleep(x)", "sleep(\"1\")", "return(1)", "3panic", "panic(", "panic->"] {
            assert_eq!(translated(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_name_has_a_place() {
        for (name, place) in PLACES {
            assert!(failpoint::NAMES.contains(&place), "{name}: {place}");
        }
        assert_eq!(of_place("raft-after-persist").collect::<Vec<_>>(), ["raftAfterSave", "raftBeforeFollowerSend"]);
    }

    #[test]
    fn what_is_not_set_is_said_in_the_librarys_words() {
        assert_eq!(enable("nowhere", "panic"), Err(Refused::Unknown));
        assert_eq!(enable("raftBeforeSave", "explode"), Err(Refused::BadTerms));
        assert_eq!(disable("raftBeforeSave"), Err(Refused::Disabled));
        assert_eq!(status("raftBeforeSave").unwrap_err().to_string(), "failpoint: failpoint is disabled");
        assert_eq!(arm("a=b=c").unwrap_err(), "fail to parse failpoint: bad failpoint \"a=b=c\"");
        assert_eq!(arm("compactBeforeCommitBatch=panic;"), Ok(()), "etcd has it, and no place of ours");
        assert!(list().values().all(String::is_empty));
    }
}
