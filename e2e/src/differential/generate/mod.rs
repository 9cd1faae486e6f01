//! Sequences of requests, drawn from a seed. Few keys, few values and revisions near the current one, so that requests
//! meet each other; and a share of everything that must be refused.
//!
//! One file per service; each draws messages and knows nothing of what a server answers.

mod bad;
mod kv;
mod lease;
mod maintenance;
mod txn;
mod watch;

use bytes::Bytes;
use fastrand::Rng;

use super::revision::{compacted, current};
use super::step::Step;

/// A sequence of `length` steps; without `leases` none of its steps makes one.
pub fn sequence(seed: u64, length: usize, leases: bool) -> Vec<Step> {
    let mut draw = Draw(Rng::with_seed(seed), leases);
    (0..length).map(|_| draw.step()).collect()
}

/// The source of all choices, and whether there are leases.
struct Draw(Rng, bool);

impl Draw {
    fn step(&mut self) -> Step {
        match self.0.u32(0..1000) {
            0..240 => Step::Range(self.range()),
            240..430 => Step::Put(self.put()),
            430..450 => self.raw(),
            450..530 => Step::DeleteRange(self.delete_range()),
            530..720 => Step::Txn(self.txn()),
            720..770 => self.lease(),
            770..790 => Step::Compact(self.compaction()),
            790..960 => self.watch(),
            960..970 => Step::Status,
            970..990 => Step::HashKv(self.hash_kv()),
            _ => Step::MemberList(self.member_list()),
        }
    }

    /// True in `percent` of cases.
    fn chance(&mut self, percent: u32) -> bool {
        self.0.u32(0..100) < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.0.usize(0..choices.len())].clone()
    }

    /// Mostly one of eight, so that requests meet; else a family under a prefix, or a key at the edge of an order.
    fn key(&mut self) -> Bytes {
        match self.0.u32(0..100) {
            0..66 => Bytes::from(vec![self.pick(b"abcdefgh")]),
            66..84 => Bytes::from(format!("p/{:02}", self.0.u32(0..20))),
            84..98 => {
                Bytes::from_static(self.pick::<&[u8]>(&[b"\0", b"a\0", b"ab", b"p/", b"\xff", b"\xff\xff", b"p"]))
            }
            _ => Bytes::new(),
        }
    }

    /// What may stand as the end of a range that begins at `key`: nothing, "all that follows", the end of the prefix,
    /// or another key, which is often not behind `key`.
    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.0.u32(0..100) {
            0..35 => Bytes::new(),
            35..50 => Bytes::from_static(b"\0"),
            50..65 => prefix_end(key),
            65..67 => key.clone(),
            _ => self.key(),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.0.u32(0..1000) {
            0..850 => Bytes::from(vec![b'v', self.pick(b"012345")]),
            850..900 => Bytes::new(),
            900..996 => Bytes::from(vec![self.pick(b"xyz"); self.pick(&[100, 1000, 5000])]),
            // Around what a request may hold: 1.5 MiB.
            _ => Bytes::from(vec![b'L'; self.pick(&[1_000_000, 1_572_000, 1_572_864, 1_600_000])]),
        }
    }

    /// A revision to read at.
    fn revision(&mut self) -> i64 {
        match self.0.u32(0..100) {
            0..55 => 0,
            55..86 => current(-self.0.i64(0..12)),
            86..90 => current(self.0.i64(1..4)),
            90..97 => compacted(self.0.i64(-2..3)),
            _ => self.pick(&[-1, -7, 1, 2, i64::MAX, i64::MIN]),
        }
    }
}

/// The first key behind all with this prefix; "\0", no end, when there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
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

    #[test]
    fn a_seed_is_a_sequence() {
        assert_eq!(sequence(7, 500, true), sequence(7, 500, true));
        assert_ne!(sequence(7, 500, true), sequence(8, 500, true));
        assert_eq!(sequence(7, 500, true)[..100], sequence(7, 100, true)[..]);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_of_it() {
        assert_eq!(prefix_end(b"ab"), "ac");
        assert_eq!(&prefix_end(b"a\xff")[..], b"b");
        assert_eq!(&prefix_end(b"\xff\xff")[..], b"\0");
    }
}
