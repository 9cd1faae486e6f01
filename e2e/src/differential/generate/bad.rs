//! Messages that are none: bytes that do not decode, methods that do not exist, more bytes than a server takes.

use bytes::Bytes;

use super::Draw;
use crate::differential::step::Step;

/// Methods that are there, and some that are not.
const PATHS: [&str; 9] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.KV/None",
    "/etcdserverpb.None/Range",
    "/none",
];

impl Draw {
    pub(super) fn raw(&mut self) -> Step {
        let body = match self.rng.u32(0..100) {
            // A field that claims to be longer than the message, a group that never ends, a varint that never ends.
            0..60 => Bytes::from_static(self.pick::<&[u8]>(&[
                b"\x0a\xff\x01a",
                b"\x0b\x0b\x0b",
                &[0xff; 12],
                b"\x0a",
                b"\x08",
            ])),
            // Fields that nobody knows: not an error.
            60..95 => Bytes::from_static(b"\xf8\x3f\x01"),
            _ => Bytes::from(vec![0; self.pick(&[2_097_152, 2_097_153, 3_000_000])]),
        };
        Step::Raw { path: self.pick(&PATHS), body }
    }
}
