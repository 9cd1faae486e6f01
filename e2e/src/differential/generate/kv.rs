//! Ranges, puts, deletes and compactions.

use balsa_proto::etcdserverpb as pb;

use super::Draw;
use crate::differential::revision::{compacted, current};

impl Draw {
    pub(super) fn range(&mut self) -> pb::RangeRequest {
        let key = self.key();
        let mut request = pb::RangeRequest {
            range_end: self.range_end(&key),
            key,
            revision: self.revision(),
            serializable: self.chance(25),
            keys_only: self.chance(10),
            count_only: self.chance(8),
            ..Default::default()
        };
        if self.chance(40) {
            request.limit = self.pick(&[1, 1, 2, 3, 5, 10, -1, i64::MAX]);
        }
        if self.chance(35) {
            request.sort_order = self.rng.i32(0..3);
            request.sort_target = self.rng.i32(0..5);
        } else if self.chance(2) {
            request.sort_order = self.pick(&[0, 1, 3, -1, i32::MAX]);
            request.sort_target = self.pick(&[0, 4, 5, -1, i32::MIN]);
        }
        if self.chance(12) {
            self.revision_filters(&mut request);
        }
        request
    }

    fn revision_filters(&mut self, request: &mut pb::RangeRequest) {
        for bound in [
            &mut request.min_mod_revision,
            &mut request.max_mod_revision,
            &mut request.min_create_revision,
            &mut request.max_create_revision,
        ] {
            if self.chance(40) {
                *bound = if self.chance(95) { current(-self.rng.i64(0..20)) } else { self.pick(&[-1, i64::MAX]) };
            }
        }
    }

    pub(super) fn put(&mut self) -> pb::PutRequest {
        let mut request =
            pb::PutRequest { key: self.key(), value: self.value(), prev_kv: self.chance(35), ..Default::default() };
        if self.chance(10) {
            request.ignore_value = true;
            if self.chance(85) {
                request.value = Default::default();
            }
        }
        request.ignore_lease = self.chance(10);
        if self.chance(20) {
            request.lease = self.lease_id();
        }
        request
    }

    pub(super) fn delete_range(&mut self) -> pb::DeleteRangeRequest {
        let key = self.key();
        // Mostly single keys, or the store would always be empty.
        let range_end = if self.chance(60) { Default::default() } else { self.range_end(&key) };
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.chance(50) }
    }

    pub(super) fn compaction(&mut self) -> pb::CompactionRequest {
        let revision = match self.rng.u32(0..100) {
            0..60 => current(-self.rng.i64(3..20)),
            60..75 => current(-self.rng.i64(0..3)),
            75..80 => current(self.rng.i64(1..3)),
            80..95 => compacted(self.rng.i64(-1..3)),
            _ => self.pick(&[0, -1, 1, i64::MAX, i64::MIN]),
        };
        pb::CompactionRequest { revision, physical: self.chance(40) }
    }
}
