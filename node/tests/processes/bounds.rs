//! The bound on the size of a request, to the byte, beside a running etcd.

use balsa_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::request_op::Request;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::healthy;

const BOUND: &str = "--max-request-bytes=4096";

fn put(bytes: usize) -> pb::PutRequest {
    pb::PutRequest { key: "k".into(), value: vec![b'v'; bytes].into(), ..Default::default() }
}

/// Sends a request of one kind with so many bytes of content; true when it is taken.
async fn takes(kv: &mut KvClient<Channel>, kind: &str, bytes: usize) -> bool {
    let refused = match kind {
        "put" => kv.put(put(bytes)).await.err(),
        "delete" => {
            let request = pb::DeleteRangeRequest { key: vec![b'k'; bytes].into(), ..Default::default() };
            kv.delete_range(request).await.err()
        }
        _ => {
            let success = vec![pb::RequestOp { request: Some(Request::RequestPut(put(bytes))) }];
            kv.txn(pb::TxnRequest { success, ..Default::default() }).await.err()
        }
    };
    if let Some(status) = &refused {
        assert_eq!(status.message(), "etcdserver: request is too large", "{kind} of {bytes}");
    }
    refused.is_none()
}

/// The largest that is taken of each kind.
async fn bounds(port: u16) -> Vec<(&'static str, usize)> {
    let mut kv = KvClient::connect(format!("http://127.0.0.1:{port}")).await.expect("connected");
    let mut found = Vec::new();
    for kind in ["put", "delete", "txn"] {
        let (mut taken, mut refused) = (3_000, 5_000);
        while refused - taken > 1 {
            let middle = usize::midpoint(taken, refused);
            *if takes(&mut kv, kind, middle).await { &mut taken } else { &mut refused } = middle;
        }
        found.push((kind, taken));
    }
    found
}

/// The bytes of a request's id in etcd's log; what makes it one of a member is in its upper 16 bits.
async fn id_bytes(port: u16) -> usize {
    let url = format!("http://127.0.0.1:{port}");
    let mut kv = KvClient::connect(url).await.expect("connected");
    let answer = kv.range(pb::RangeRequest { key: "k".into(), ..Default::default() }).await.expect("a read");
    let id = answer.into_inner().header.expect("a header").member_id << 48;
    (u64::BITS - id.leading_zeros()).div_ceil(7) as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_request_is_etcds() {
    let cluster = Cluster::start_with(1, &[BOUND]).await;
    let ours = bounds(cluster.members[0].client_port).await;
    // 4096 without etcd's header of 14 bytes; three bytes of the message, three of the key, three of the value.
    assert_eq!(ours[0], ("put", 4_096 - 14 - 3 - 3 - 3));
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 1, &[BOUND.to_owned()]);
        healthy(etcd.port).await;
        let shorter = 10 - id_bytes(etcd.port).await;
        let theirs = bounds(etcd.port).await;
        assert_eq!(theirs, ours.iter().map(|(kind, bytes)| (*kind, bytes + shorter)).collect::<Vec<_>>(), "{release}");
    }
}
