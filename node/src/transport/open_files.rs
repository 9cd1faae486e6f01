//! How many files the process may have open, connections among them, and how many of these connections of clients may take.
//!
//! A shell or systemd gives a process 1,024 and lets it ask for many more, which every program in Go does. And whoever may
//! connect could take them all: then the stores cannot open their files, and members cannot reach each other.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for the process itself: 512 files of each of the two stores, and as many as etcd keeps for connections of members and
/// whatever else.
const OWN: u64 = 2 * 512 + 150;

/// Asks for as many as the system lets this process have.
///
/// # Errors
/// It does not after all.
pub fn raise() -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// How many connections clients may have together.
pub fn for_clients() -> usize {
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(without_own(all)).unwrap_or(usize::MAX)
}

/// Of very few the process has half.
fn without_own(all: u64) -> u64 {
    all - OWN.min(all / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_keeps_what_it_needs() {
        assert_eq!((without_own(1 << 20), without_own(1_024), without_own(0)), ((1 << 20) - OWN, 512, 0));
    }

    #[test]
    fn all_that_the_system_gives_are_asked_for() {
        raise().unwrap();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert!(for_clients() > 0);
    }
}
