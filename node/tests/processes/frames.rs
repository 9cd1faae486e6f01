//! Calls that no client of gRPC sends: cut messages, wrong flags, headers that are none. Each beside the running etcds.

use balsa_e2e::differential::frames::{End, Frames, Heard, message};
use tonic::Code;

use crate::cluster::Cluster;
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::healthy;

const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
const OBSERVE: &str = "/v3electionpb.Election/Observe";
const RENEW: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// Range of the key `a`.
const KEY: &[u8] = &[0x0a, 1, b'a'];
/// The head of a message that is larger than a request may be.
const LARGE: &[u8] = &[0, 0, 0x30, 0, 0];

/// The releases to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Like {
    Both,
    /// Both, but for the text, in which each library quotes its own decoder.
    BothButText,
    /// The first only: the other has something new, which clients of the first do not know.
    First,
    /// The second only.
    Second,
}

fn cases() -> Vec<(&'static str, Like, Frames)> {
    let range = || Frames::new(RANGE, message(0, KEY));
    let mut cases = cut();
    cases.extend(headers());
    cases.extend([
        ("as it should be", Like::Both, range()),
        ("not ended", Like::Both, range().ending(End::Open)),
        ("two messages", Like::Both, Frames::new(RANGE, [message(0, KEY), message(0, KEY)].concat())),
        ("a second one that is none", Like::Both, Frames::new(RANGE, [message(0, KEY), message(7, KEY)].concat())),
        ("a second one that is cut", Like::Both, Frames::new(RANGE, [&message(0, KEY)[..], &[0, 0]].concat())),
        ("a stream of answers, not ended", Like::First, Frames::new(SNAPSHOT, message(0, b"")).ending(End::Open)),
        ("a stream of answers to two messages", Like::First, Frames::new(SNAPSHOT, message(0, b"").repeat(2))),
        (
            "a second one that is cut, for answers",
            Like::Both,
            Frames::new(SNAPSHOT, [&message(0, b"")[..], &[0]].concat()),
        ),
        ("no key", Like::BothButText, Frames::new(RANGE, message(0, &[0xff, 0xff]))),
        ("no message for answers", Like::BothButText, Frames::new(SNAPSHOT, message(0, &[0xff, 0xff]))),
        (
            "nothing that decodes, on a stream",
            Like::BothButText,
            Frames::new(WATCH, message(0, &[0xff, 0xff])).ending(End::Open),
        ),
        (
            "nothing that decodes, for renewals",
            Like::BothButText,
            Frames::new(RENEW, message(0, &[0xff, 0xff])).ending(End::Open),
        ),
        ("health, listed", Like::Second, Frames::new("/grpc.health.v1.Health/List", message(0, b""))),
    ]);
    for path in ["/a.B/C", "/etcdserverpb.KV/Nope", "/x/etcdserverpb.KV/Range", "/nope", "/health", "/v3/kv/range"] {
        cases.push((path, Like::Both, Frames::new(path, message(0, KEY))));
    }
    for path in ["/etcdserverpb.KV/Range?a=b", "/etcdserverpb.KV/Range/", "/", "/a.B/C/", "//"] {
        cases.push((path, Like::Both, Frames::new(path, message(0, KEY)).ending(End::Open)));
    }
    cases
}

/// Messages that are none, of each kind of call.
fn cut() -> Vec<(&'static str, Like, Frames)> {
    let mut cases = Vec::new();
    for (path, kind) in [(RANGE, Like::Both), (SNAPSHOT, Like::First), (OBSERVE, Like::First), (RENEW, Like::Both)] {
        let mut case = |name, like, bytes: &[u8]| cases.push((name, like, Frames::new(path, bytes.to_vec())));
        case("nothing", kind, b"");
        case("a head that is cut", kind, &[0, 0]);
        case("a head alone", Like::Both, &message(0, KEY)[..5]);
        case("a message that is cut", Like::Both, &message(0, KEY)[..7]);
        case("another flag", Like::Both, &message(2, KEY));
        case("another flag and cut", Like::Both, &message(2, KEY)[..7]);
        case("compressed, it says", Like::Both, &message(1, KEY));
        case("too large", Like::Both, LARGE);
        case("as large as can be", Like::Both, &[0, 0xff, 0xff, 0xff, 0xff]);
    }
    for path in [RANGE, WATCH, RENEW, SNAPSHOT] {
        let open = |bytes: &[u8]| Frames::new(path, bytes.to_vec()).ending(End::Open);
        cases.push(("too large, and not ended", Like::Both, open(LARGE)));
        cases.push(("another flag, and not ended", Like::Both, open(&message(2, b""))));
        cases.push(("an encoding that there is not", Like::Both, open(b"").with("grpc-encoding", "br")));
        cases.push(("cut and taken back", Like::Both, Frames::new(path, [0, 0, 0].to_vec()).ending(End::Reset)));
    }
    cases.push(("a watch that is cut", Like::Both, Frames::new(WATCH, message(0, KEY)[..7].to_vec())));
    cases
}

/// Headers around a good message.
fn headers() -> Vec<(&'static str, Like, Frames)> {
    let with = |name, value: &[u8]| Frames::new(RANGE, message(0, KEY)).with(name, value);
    let mut cases: Vec<(&'static str, Like, Frames)> = Vec::new();
    for value in ["gzip", "identity", "", "GZIP", "br", "gz\"ip"] {
        cases.push(("grpc-encoding", Like::Both, with("grpc-encoding", value.as_bytes())));
    }
    cases.push(("two encodings", Like::Both, with("grpc-encoding", b"br").with("grpc-encoding", "gzip")));
    let packed = Frames::new(RANGE, message(1, KEY));
    cases.push(("compressed as identity", Like::Both, packed.clone().with("grpc-encoding", "identity")));
    cases.push(("compressed, but not so", Like::BothButText, packed.with("grpc-encoding", "gzip")));
    for value in ["application/grpc+proto", "application/grpc+json", "application/grpc+", "application/grpc;x"] {
        cases.push(("content-type", Like::Both, with("content-type", value.as_bytes())));
    }
    cases.push(("content-type", Like::Both, with("content-type", b"application/grpc-web")));
    for value in
        [&b"AQID"[..], b"AQ", b"AQ==", b"AR", b"!!!", b"AQIDA", b"AQID,AQID", b"-_-_", b"\"\xff\\", b"ABC=AAAA"]
    {
        cases.push(("x-bin", Like::Both, with("x-bin", value)));
        cases.push(("x", Like::Both, with("x", value)));
    }
    for value in ["1n", "0S", "x", "", "1s", "123456789S", "99999999H", "5M", "1é"] {
        cases.push(("grpc-timeout", Like::Both, with("grpc-timeout", value.as_bytes())));
    }
    for value in ["-1S", "+1S", "abcS"] {
        cases.push(("grpc-timeout", Like::First, with("grpc-timeout", value.as_bytes())));
    }
    cases.push(("two times", Like::Both, with("grpc-timeout", b"x").with("grpc-timeout", "1S")));
    cases.push(("a bad time and a bad value", Like::Both, with("grpc-timeout", b"x").with("x-bin", "!")));
    cases.push(("a bad value and a bad time", Like::Both, with("x-bin", b"!").with("grpc-timeout", "x")));
    cases.push(("two hosts", Like::Both, with("host", b"a").with("host", "b")));
    let waiting = Frames::new(RANGE, Vec::new()).ending(End::Open).with("grpc-timeout", "200m");
    cases.push(("no message in time", Like::First, waiting));
    cases.push(("a bad time for no method", Like::Both, Frames::new("/a.B/C", Vec::new()).with("grpc-timeout", "x")));
    cases
}

/// What is compared of an answer. How many messages a snapshot takes is the server's affair, and whether the stream is reset
/// behind a whole answer is a race in both.
fn compared(frames: &Frames, like: Like, mut heard: Heard) -> Heard {
    if frames.path == SNAPSHOT {
        heard.messages = heard.messages.min(1);
    }
    if let (Like::BothButText, Some((_, text))) = (like, &mut heard.ended) {
        text.clear();
    }
    if matches!(heard.ended, Some((Code::DeadlineExceeded, _))) {
        heard.broken = String::new();
    }
    // So is whether the head of a stream of answers comes before the client takes its call back.
    if frames.end == End::Reset {
        heard = Heard { broken: heard.broken, ended: heard.ended, ..Heard::default() };
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_none_is_answered_as_by_etcd() {
    let cluster = Cluster::start(1).await;
    let mut compared_with = 0;
    let mut differences = Vec::new();
    for (index, release) in RELEASES.into_iter().enumerate() {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 1, &[]);
        healthy(etcd.port).await;
        let address = |port| format!("127.0.0.1:{port}");
        let (balsa, etcd_address) = (address(cluster.members[0].client_port), address(etcd.port));
        for (name, like, frames) in cases() {
            if matches!((like, index), (Like::First, 1) | (Like::Second, 0)) {
                continue;
            }
            let (ours, theirs) = tokio::join!(frames.send(&balsa), frames.send(&etcd_address));
            let of = |heard| compared(&frames, like, heard);
            let (ours, theirs) = (of(ours), of(theirs));
            if ours != theirs {
                differences.push(format!("{name}, {frames:?}\n  {release}: {theirs:?}\n  balsa: {ours:?}"));
            }
            compared_with += 1;
        }
    }
    assert!(differences.is_empty(), "{} of {compared_with} differ:\n{}", differences.len(), differences.join("\n"));
}
