//! Range: filter, sort, cut and count, with etcd's order of these steps.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use balsa_proto::mvccpb::KeyValue;
use bytes::Bytes;

use super::counts::{Counted, Counts};
use super::encoding::VersionRef;
use super::source::{Source, Stored, scan_at, version_at};
use super::{KeyRange, ReadError, Revisions, current, key_value};
use crate::storage::{StorageError, View};

/// Answers a range on a view. The header carries the current revision only. Field checks are the service's; a sort
/// enum that nobody knows reads as its default.
///
/// # Errors
/// `FutureRevision`, `Compacted`, or the store's.
pub fn range(view: &impl View, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ReadError> {
    let revisions = current(view)?;
    let revision = revisions.resolve(request.revision)?;
    Ok(range_at(&Stored(view), revisions, revision, request)?)
}

/// The same where the number of keys is known by blocks. The counts were taken before the view.
///
/// # Errors
/// Those of [`range`].
pub fn range_counted(
    view: &impl View,
    counts: Option<&Counts>,
    request: &pb::RangeRequest,
) -> Result<pb::RangeResponse, ReadError> {
    let Some(counts) = counts else { return range(view, request) };
    let revisions = current(view)?;
    let revision = revisions.resolve(request.revision)?;
    Ok(range_at(&Counted { view, counts }, revisions, revision, request)?)
}

/// Answers a range at a revision that was found readable.
pub(crate) fn range_at(
    source: &impl Source,
    revisions: Revisions,
    revision: i64,
    request: &pb::RangeRequest,
) -> Result<pb::RangeResponse, StorageError> {
    let range = KeyRange::of(&request.key, &request.range_end);
    let mut found = Collector::new(request);
    if let KeyRange::One(key) = &range {
        if let Some(version) = version_at(source, key, revision)? {
            found.one(key_value(key.clone(), version));
        }
    } else if request.count_only
        && let Some(count) = source.count(&range, revision, revisions.revision)?
    {
        found.count = count;
    } else {
        scan(source, range, revision, revisions, &mut found)?;
    }
    Ok(found.response(revisions.revision))
}

/// Goes over the range, and stops where only the count needs the rest, if the source can say how many those are.
fn scan(
    source: &impl Source,
    range: KeyRange,
    revision: i64,
    revisions: Revisions,
    found: &mut Collector<'_>,
) -> Result<(), StorageError> {
    let mut range = range;
    let mut may_ask = found.cut_first && !found.request.count_only;
    loop {
        let mut last = None;
        scan_at(source, &range, revision, revisions.revision, &mut |key, version| {
            found.add(key, version);
            if may_ask && found.kvs.len() >= found.keep {
                last = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let (Some(last), KeyRange::Span { high, .. }) = (last, range) else { return Ok(()) };
        let low = Bytes::from([&last[..], &[0]].concat());
        range = KeyRange::Span { low, high };
        if let Some(rest) = source.count(&range, revision, revisions.revision)? {
            found.count += rest;
            return Ok(());
        }
        may_ask = false;
    }
}

/// Gathers what a range answers and no more than it must keep: at most about twice the limit.
struct Collector<'a> {
    request: &'a pb::RangeRequest,
    /// None: key order, as scanned.
    order: Option<(SortTarget, bool)>,
    /// How many pairs are worth keeping: one over the limit, which tells `more`.
    keep: usize,
    /// The first `keep` are taken in key order, even if they are sorted afterwards.
    cut_first: bool,
    count: i64,
    kvs: Vec<KeyValue>,
}

impl<'a> Collector<'a> {
    /// Pairs that may pile up over twice the limit before they are sorted and cut.
    const SLACK: usize = 512;

    fn new(request: &'a pb::RangeRequest) -> Self {
        let (target, order) = (request.sort_target(), request.sort_order());
        let default_order = order == SortOrder::None || (target, order) == (SortTarget::Key, SortOrder::Ascend);
        let keep = match request.limit {
            ..=0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1),
        };
        let descend = order == SortOrder::Descend;
        let sorted = target != SortTarget::Key || descend;
        Self {
            request,
            order: sorted.then_some((target, descend)),
            keep,
            cut_first: default_order && !has_filters(request),
            count: 0,
            kvs: Vec::new(),
        }
    }

    /// A pair in key order.
    fn add(&mut self, key: &[u8], version: VersionRef<'_>) {
        self.count += 1;
        let enough = (self.cut_first || self.order.is_none()) && self.kvs.len() >= self.keep;
        if enough || self.request.count_only || !self.passes(version.create_revision, version.mod_revision) {
            return;
        }
        self.kvs.push(KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            version: version.version,
            value: if self.without_values() { Bytes::new() } else { Bytes::copy_from_slice(version.value) },
            lease: version.lease,
        });
        if self.kvs.len() >= self.keep.saturating_mul(2).saturating_add(Self::SLACK) {
            self.sort();
            self.kvs.truncate(self.keep);
        }
    }

    /// The pair of a request for one key.
    fn one(&mut self, kv: KeyValue) {
        self.count = 1;
        if !self.request.count_only && self.passes(kv.create_revision, kv.mod_revision) {
            self.kvs.push(kv);
        }
    }

    fn without_values(&self) -> bool {
        self.request.keys_only && self.request.sort_target() != SortTarget::Value
    }

    fn passes(&self, create: i64, modified: i64) -> bool {
        let within = |revision, min, max| (min == 0 || revision >= min) && (max == 0 || revision <= max);
        let r = self.request;
        within(modified, r.min_mod_revision, r.max_mod_revision)
            && within(create, r.min_create_revision, r.max_create_revision)
    }

    /// Stable, so cutting before all was seen changes nothing.
    fn sort(&mut self) {
        let Some((target, descend)) = self.order else { return };
        let compare = |a: &KeyValue, b: &KeyValue| -> Ordering {
            match target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            }
        };
        match descend {
            true => self.kvs.sort_by(|a, b| compare(b, a)),
            false => self.kvs.sort_by(compare),
        }
    }

    fn response(mut self, revision: i64) -> pb::RangeResponse {
        self.sort();
        let more = self.kvs.len() >= self.keep;
        self.kvs.truncate(if self.keep == usize::MAX { self.keep } else { self.keep - 1 });
        if self.request.keys_only {
            self.kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        pb::RangeResponse { header: header(revision), kvs: self.kvs, more, count: self.count }
    }
}

fn has_filters(r: &pb::RangeRequest) -> bool {
    [r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision] != [0; 4]
}

/// A header as the model fills it.
pub(crate) fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..Default::default() })
}
