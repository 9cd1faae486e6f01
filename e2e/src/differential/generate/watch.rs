//! Requests on a few watch streams: watchers of every option, cancels of known and unknown ids, progress.

use balsa_proto::etcdserverpb as pb;
use pb::watch_request::RequestUnion;

use super::{Draw, Theme};
use crate::differential::revision::{compacted, current};
use crate::differential::step::Step;

/// Streams of a sequence.
const STREAMS: usize = 4;

impl Draw {
    pub(super) fn watch(&mut self) -> Step {
        let stream = self.stream();
        let union = match self.rng.u32(0..100) {
            0..62 => RequestUnion::CreateRequest(self.create()),
            62..90 => RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: self.watch_id() }),
            _ => RequestUnion::ProgressRequest(pb::WatchProgressRequest {}),
        };
        // Nothing at all is a request too.
        let request_union = if self.chance(1) { None } else { Some(union) };
        Step::Watch { stream, request: pb::WatchRequest { request_union } }
    }

    pub(super) fn stream(&mut self) -> usize {
        self.rng.usize(0..STREAMS)
    }

    fn watch_id(&mut self) -> i64 {
        match self.rng.u32(0..100) {
            0..80 => self.rng.i64(0..12),
            80..95 => self.rng.i64(100..104),
            _ => self.pick(&[-1, -2, 500, i64::MAX, i64::MIN]),
        }
    }

    pub(super) fn create(&mut self) -> pb::WatchCreateRequest {
        let key = self.key();
        let mut request = pb::WatchCreateRequest {
            range_end: self.range_end(&key),
            key,
            start_revision: self.start_revision(),
            progress_notify: self.chance(20),
            prev_kv: self.chance(40),
            fragment: self.chance(30),
            ..Default::default()
        };
        if self.chance(25) {
            request.filters = (0..self.rng.usize(1..3)).map(|_| self.pick(&[0, 0, 1, 1, 2, -1])).collect();
        }
        if self.chance(20) {
            // etcd sends events of a watcher named -1 before it announces it: nothing to compare.
            request.watch_id = self.watch_id();
            if request.watch_id == -1 {
                request.watch_id = 0;
            }
        }
        request
    }

    fn start_revision(&mut self) -> i64 {
        // When a watcher of the past has seen it is told by another watcher, whom permissions could refuse.
        if self.theme == Theme::Users {
            return 0;
        }
        match self.rng.u32(0..100) {
            0..45 => 0,
            45..80 => current(-self.rng.i64(0..15)),
            80..86 => current(self.rng.i64(1..6)),
            86..96 => compacted(self.rng.i64(-2..3)),
            _ => self.pick(&[-1, 1, 2, i64::MAX, i64::MIN]),
        }
    }
}
