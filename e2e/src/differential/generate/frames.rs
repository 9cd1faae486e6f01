//! What stands around a message, drawn: times, encodings, metadata, content types, names of methods; and messages that are
//! cut, too long, too many, or sent over HTTP/1.1. The messages themselves are those that the other files draw.
//!
//! Only calls of one message: how streams of two releases of gRPC-Go differ is said in `node/tests/processes/frames.rs`.

use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use prost::Message;

use super::Draw;
use crate::differential::frames::{End, Frames, message};
use crate::differential::step::Step;

/// A range that both servers ask their leader for.
const RANGE: &str = "/etcdserverpb.KV/Range";

/// Names of no method.
const NONE: [&str; 8] = [
    "/etcdserverpb.KV/None",
    "/etcdserverpb.None/Range",
    "/none",
    "/",
    "/etcdserverpb.KV/Range?a=b",
    "/etcdserverpb.KV/Range/",
    "/v3/kv/range",
    "/health",
];

/// Headers with values that both releases take, or refuse, alike.
const HEADERS: &[(&str, &[&[u8]])] = &[
    ("grpc-timeout", &[b"1H", b"5M", b"99999999H", b"60S", b"x", b"", b"1s", b"123456789S"]),
    ("grpc-encoding", &[b"gzip", b"identity", b"", b"GZIP", b"br", b"snappy"]),
    ("grpc-accept-encoding", &[b"gzip", b"br", b"", b"identity,gzip"]),
    (
        "content-type",
        &[
            b"application/grpc+proto",
            b"application/grpc+json",
            b"application/grpc;charset=utf-8",
            b"application/grpc+",
            b"application/grpc-web",
            b"application/grpcx",
        ],
    ),
    ("x-any", &[b"", b"text", b"a b", b"\xff\xfe", b"\xc3\xbc", b"\t"]),
    ("x-any-bin", &[b"", b"AQID", b"AQ", b"AQ==", b"AR", b"!", b"AQIDA", b"AQID,AQID", b"-_-_", b"AA==AA=="]),
    ("grpc-trace-bin", &[b"AAAA", b"!!"]),
    ("client-api-version", &[b"3.6", b"", b"x y"]),
    ("hasleader", &[b"true", b"x"]),
    ("host", &[b"a"]),
    ("user-agent", &[b"", b"\"a\" (b)"]),
];

impl Draw {
    /// A call by hand, with something odd about it.
    pub(super) fn frames(&mut self) -> Step {
        let (path, body) = self.good();
        let mut frames = Frames::new(path, message(0, &body));
        match self.rng.u32(0..100) {
            0..45 => {
                for _ in 0..self.rng.u32(1..4) {
                    frames = self.with_header(frames);
                }
            }
            45..50 => frames = self.late(),
            50..60 => frames.path = self.pick(&NONE).to_owned(),
            60..90 => self.spoil(&mut frames, &body),
            90..95 => frames.end = End::Open,
            _ => frames.http1 = true,
        }
        if self.chance(30) {
            self.cut(&mut frames);
        }
        Step::Frames(frames)
    }

    /// A method and a message of it.
    fn good(&mut self) -> (&'static str, Vec<u8>) {
        match self.rng.u32(0..100) {
            0..50 => {
                let request = pb::RangeRequest { revision: 0, ..self.range() };
                (RANGE, request.encode_to_vec())
            }
            50..75 => ("/etcdserverpb.KV/Put", self.put().encode_to_vec()),
            75..85 => ("/etcdserverpb.KV/DeleteRange", self.delete_range().encode_to_vec()),
            85..95 => ("/etcdserverpb.Lease/LeaseLeases", Vec::new()),
            _ => ("/etcdserverpb.Maintenance/Status", Vec::new()),
        }
    }

    fn with_header(&mut self, frames: Frames) -> Frames {
        let (name, values) = self.pick(HEADERS);
        frames.with(name, self.pick(values))
    }

    /// A call whose time is over when it comes. A read that is right: 3.6 may look at it, and may propose a write, all the same.
    fn late(&mut self) -> Frames {
        let request = pb::RangeRequest { key: "a".into(), ..Default::default() };
        let time = self.pick(&["1n", "0n", "0S", "0H"]);
        Frames::new(RANGE, message(0, &request.encode_to_vec())).with("grpc-timeout", time)
    }

    /// Makes of a message what is none, or more than one.
    fn spoil(&mut self, frames: &mut Frames, body: &[u8]) {
        let good = message(0, body);
        let bytes = match self.rng.u32(0..7) {
            // gRPC-Go is silent when a call ends with its head.
            0 => good[..self.rng.usize(1..good.len())].to_vec(),
            1 => message(self.pick(&[1, 2, 7, 255]), body),
            2 => good.repeat(self.rng.usize(2..4)),
            3 => [&good[..], &message(self.pick(&[0, 3]), b"\xff")].concat(),
            4 => [&good[..], &good[..self.rng.usize(1..good.len())]].concat(),
            5 => vec![0, 0xff, 0xff, 0xff, 0xff],
            _ => vec![0, 0, 0x20, 0, 1],
        };
        frames.pieces = vec![bytes.into()];
    }

    /// In two frames.
    fn cut(&mut self, frames: &mut Frames) {
        let Some(mut bytes) = frames.pieces.pop() else { return };
        let head: Bytes = bytes.split_to(self.rng.usize(0..=bytes.len()));
        frames.pieces.extend([head, bytes]);
    }
}
