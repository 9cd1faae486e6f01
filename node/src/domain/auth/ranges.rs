//! Key ranges merged into disjoint spans, for "is this range covered".

use balsa_proto::authpb::Permission;
use bytes::Bytes;

/// Disjoint spans of keys in ascending order; spans that touch are one. None as the end means open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRanges {
    spans: Vec<(Bytes, Option<Bytes>)>,
}

/// The end of what `key` and `range_end` name in etcd's forms: empty is one key, a zero byte is open.
fn end_of(key: &[u8], range_end: &[u8]) -> Option<Bytes> {
    match range_end {
        [] => Some([key, b"\0"].concat().into()),
        [0] => None,
        _ => Some(Bytes::copy_from_slice(range_end)),
    }
}

/// Whether an end is at or behind another.
fn reaches(end: Option<&[u8]>, other: Option<&[u8]>) -> bool {
    match (end, other) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(end), Some(other)) => end >= other,
    }
}

impl KeyRanges {
    /// The union of what permissions name.
    pub fn of<'p>(permissions: impl Iterator<Item = &'p Permission>) -> Self {
        let mut given: Vec<_> = permissions.map(|p| (p.key.clone(), end_of(&p.key, &p.range_end))).collect();
        given.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut spans: Vec<(Bytes, Option<Bytes>)> = Vec::with_capacity(given.len());
        for (low, end) in given {
            match spans.last_mut() {
                Some((_, last)) if reaches(last.as_deref(), Some(&low)) => {
                    if !reaches(last.as_deref(), end.as_deref()) {
                        *last = end;
                    }
                }
                _ => spans.push((low, end)),
            }
        }
        Self { spans }
    }

    /// Whether one span covers all keys that `key` and `range_end` name. A range that holds no key counts as its first
    /// one, as in etcd.
    pub fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let next = self.spans.partition_point(|(low, _)| &low[..] <= key);
        let Some((_, end)) = next.checked_sub(1).map(|at| &self.spans[at]) else { return false };
        let end = end.as_deref();
        let wanted = match range_end {
            [0] => None,
            _ => Some(range_end),
        };
        end.is_none_or(|end| key < end) && reaches(end, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(given: &[(&'static str, &'static str)]) -> KeyRanges {
        let permission = |(key, end): &(&'static str, &'static str)| Permission {
            key: (*key).into(),
            range_end: (*end).into(),
            ..Default::default()
        };
        let given: Vec<Permission> = given.iter().map(permission).collect();
        KeyRanges::of(given.iter())
    }

    fn covers(given: &[(&'static str, &'static str)], key: &str, end: &str) -> bool {
        ranges(given).covers(key.as_bytes(), end.as_bytes())
    }

    #[test]
    fn the_union_of_spans_must_cover_a_range() {
        assert!(!covers(&[("a", "c"), ("x", "z")], "a", "z"));
        assert!(covers(&[("a", "f"), ("c", "d"), ("f", "z")], "a", "z"));
        assert!(covers(&[("a", "d"), ("a", "b"), ("c", "f")], "a", "f"));
        assert!(!covers(&[("a", "d"), ("a", "b"), ("c", "f")], "a", "\0"), "an open range needs an open span");
        assert!(covers(&[("a", "\0")], "a", "\0"));
        assert!(covers(&[("\0", "\0")], "a", "\0"));
        assert!(covers(&[("\0", "\0")], "\0", "\0"));
        assert!(!covers(&[("b", "\0")], "a", "c"));
    }

    #[test]
    fn a_key_is_in_a_span_or_not() {
        let given = &[("a", "d"), ("a", "b"), ("c", "f"), ("k", "")];
        for (key, within) in [("a", true), ("d", true), ("f", false), ("0", false), ("k", true), ("k\0", false)] {
            assert_eq!(covers(given, key, ""), within, "{key:?}");
        }
        assert!(!covers(&[], "a", ""));
    }

    #[test]
    fn points_that_touch_are_a_span() {
        assert!(covers(&[("a", ""), ("a\0", "")], "a", "a\0\0"));
        assert!(!covers(&[("a", ""), ("b", "")], "a", "c"));
        assert_eq!(ranges(&[("c", "e"), ("a", "c"), ("b", "d")]), ranges(&[("a", "e")]));
    }

    #[test]
    fn a_range_without_keys_counts_as_its_first() {
        assert!(covers(&[("a", "c")], "b", "a"));
        assert!(covers(&[("a", "c")], "b", "b"));
        assert!(!covers(&[("a", "c")], "c", "a"));
    }
}
