//! Sequences of requests, drawn from a seed. Few keys, few values and revisions near the current one, so that requests
//! meet each other; and a share of everything that must be refused.
//!
//! One file per service; each draws messages and knows nothing of what a server answers.

mod auth;
mod bad;
mod frames;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod passing;
mod txn;
mod watch;

use std::collections::VecDeque;

use bytes::Bytes;
use fastrand::Rng;

pub use auth::user_named;

use super::revision::{compacted, current};
use super::step::Step;

/// What the servers of a run can be asked.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Both have RangeStream: the etcd is a 3.7.
    pub range_stream: bool,
    /// Both have one member, so that lists of members and alarms of members are equal.
    pub alone: bool,
}

/// A sequence of `length` steps.
pub fn sequence(seed: u64, length: usize, scope: Scope) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed);
    let theme = match rng.u32(0..100) {
        0..60 => Theme::Plain,
        // Who may ask what without a token is not the same in 3.6.
        60..85 if scope.range_stream => Theme::Users,
        _ => Theme::Troubles,
    };
    let mut draw = Draw { rng, theme, scope, ahead: VecDeque::new() };
    let mut steps = if theme == Theme::Users { draw.users() } else { Vec::new() };
    while steps.len() < length {
        let step = draw.step();
        steps.push(step);
    }
    steps.truncate(length);
    steps
}

/// What a sequence is about besides keys: were all in one, most requests would be refused for the same few reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theme {
    Plain,
    /// Users with permissions.
    Users,
    /// Alarms and members.
    Troubles,
}

/// The source of all choices, and what they are among.
struct Draw {
    rng: Rng,
    theme: Theme,
    scope: Scope,
    /// Drawn already: steps that mean something only one after the other.
    ahead: VecDeque<Step>,
}

impl Draw {
    fn step(&mut self) -> Step {
        if let Some(step) = self.ahead.pop_front() {
            return step;
        }
        match self.theme {
            Theme::Plain => self.plain(),
            Theme::Users => {
                if self.chance(12) {
                    return self.auth();
                }
                let step = self.plain();
                self.with_bearer(step)
            }
            Theme::Troubles => match self.rng.u32(0..100) {
                0..5 => self.alarm(),
                5..12 => self.maintenance(),
                12..22 if self.scope.alone => self.membership(),
                _ => self.plain(),
            },
        }
    }

    fn plain(&mut self) -> Step {
        match self.rng.u32(0..1000) {
            // With users, not all watchers can be waited for: see `start_revision`.
            0..8 if self.theme != Theme::Users => self.in_passing(),
            0..190 => Step::Range(self.range()),
            190..220 => self.frames(),
            220..240 => self.range_stream(),
            240..430 => Step::Put(self.put()),
            430..450 => self.raw(),
            450..530 => Step::DeleteRange(self.delete_range()),
            530..710 => Step::Txn(self.txn()),
            710..755 => self.lease(),
            755..795 if self.theme != Theme::Users => self.lock(),
            755..795 => self.lease(),
            795..815 => Step::Compact(self.compaction()),
            815..960 => self.watch(),
            960..970 => Step::Status,
            970..990 => Step::HashKv(self.hash_kv()),
            _ if self.scope.alone => Step::MemberList(self.member_list()),
            _ => Step::Status,
        }
    }

    fn range_stream(&mut self) -> Step {
        let request = self.range();
        if self.scope.range_stream { Step::RangeStream(request) } else { Step::Range(request) }
    }

    /// True in `percent` of cases.
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.rng.usize(0..choices.len())].clone()
    }

    /// Mostly one of eight, so that requests meet; else a family under a prefix, or a key at the edge of an order.
    fn key(&mut self) -> Bytes {
        match self.rng.u32(0..100) {
            0..66 => Bytes::from(vec![self.pick(b"abcdefgh")]),
            66..84 => Bytes::from(format!("p/{:02}", self.rng.u32(0..20))),
            84..98 => {
                Bytes::from_static(self.pick::<&[u8]>(&[b"\0", b"a\0", b"ab", b"p/", b"\xff", b"\xff\xff", b"p"]))
            }
            _ => Bytes::new(),
        }
    }

    /// What may stand as the end of a range that begins at `key`: nothing, "all that follows", the end of the prefix,
    /// or another key, which is often not behind `key`.
    fn range_end(&mut self, key: &Bytes) -> Bytes {
        let end = self.any_range_end(key);
        let holds_nothing = end <= *key && end != b"\0"[..];
        // Whether a user may read nothing is a matter of etcd's tree.
        if self.theme == Theme::Users && holds_nothing { Bytes::new() } else { end }
    }

    fn any_range_end(&mut self, key: &Bytes) -> Bytes {
        match self.rng.u32(0..100) {
            0..35 => Bytes::new(),
            35..50 => Bytes::from_static(b"\0"),
            50..65 => prefix_end(key),
            65..67 => key.clone(),
            _ => self.key(),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.rng.u32(0..1000) {
            0..850 => Bytes::from(vec![b'v', self.pick(b"012345")]),
            850..900 => Bytes::new(),
            900..996 => Bytes::from(vec![self.pick(b"xyz"); self.pick(&[100, 1000, 5000])]),
            // Around what a request may hold: 1.5 MiB.
            _ => Bytes::from(vec![b'L'; self.pick(&[1_000_000, 1_572_000, 1_572_864, 1_600_000])]),
        }
    }

    /// A revision to read at.
    fn revision(&mut self) -> i64 {
        match self.rng.u32(0..100) {
            0..55 => 0,
            55..86 => current(-self.rng.i64(0..12)),
            86..90 => current(self.rng.i64(1..4)),
            90..97 => compacted(self.rng.i64(-2..3)),
            _ => self.pick(&[-1, -7, 1, 2, i64::MAX, i64::MIN]),
        }
    }
}

/// The first key behind all with this prefix; "\0", no end, when there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Scope = Scope { range_stream: true, alone: true };

    #[test]
    fn a_seed_is_a_sequence() {
        assert_eq!(sequence(7, 500, ALL), sequence(7, 500, ALL));
        assert_ne!(sequence(7, 500, ALL), sequence(8, 500, ALL));
        assert_eq!(sequence(7, 500, ALL)[..100], sequence(7, 100, ALL)[..]);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_of_it() {
        assert_eq!(prefix_end(b"ab"), "ac");
        assert_eq!(&prefix_end(b"a\xff")[..], b"b");
        assert_eq!(&prefix_end(b"\xff\xff")[..], b"\0");
    }
}
