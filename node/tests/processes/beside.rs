//! What the differential test cannot draw, because time decides it or it is about many revisions, beside a running etcd:
//! the same calls on every server, and what came out as text, times left out.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::mvccpb::Event;
use balsa_proto::v3electionpb::election_client::ElectionClient;
use balsa_proto::v3lockpb::lock_client::LockClient;
use balsa_proto::{v3electionpb as election, v3lockpb as lock};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::healthy;

/// The same on Balsa and on each installed etcd.
async fn on_each<F: Future<Output = Vec<String>>>(script: impl Fn(Channel) -> F) {
    let balsa = Cluster::start(1).await;
    let ours = script(balsa.members[0].channel()).await;
    for release in RELEASES {
        let Some(program) = program(release) else { continue };
        let etcd = Etcd::run(&program, 1, &[]);
        healthy(etcd.port).await;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", etcd.port)).expect("a URL");
        let theirs = script(endpoint.connect_lazy()).await;
        assert_eq!(ours, theirs, "the second is {release}'s");
    }
    assert!(!ours.is_empty());
}

async fn watch(channel: &Channel, prefix: &'static str, start_revision: i64) -> Streaming<pb::WatchResponse> {
    let end = format!("{}0", prefix.trim_end_matches('/'));
    let create =
        pb::WatchCreateRequest { key: prefix.into(), range_end: end.into(), start_revision, ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let mut stream = WatchClient::new(channel.clone()).watch(requests).await.expect("a stream").into_inner();
    assert!(next(&mut stream).await.created);
    stream
}

async fn next(stream: &mut Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    timeout(PATIENCE, stream.message()).await.expect("in time").expect("no error").expect("not the end")
}

async fn grant(channel: &Channel, id: i64, ttl: i64) {
    let request = pb::LeaseGrantRequest { ttl, id };
    LeaseClient::new(channel.clone()).lease_grant(request).await.expect("granted");
}

fn shown(event: &Event) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    let (key, value) = (String::from_utf8_lossy(&kv.key).into_owned(), String::from_utf8_lossy(&kv.value).into_owned());
    format!("{:?} {key}={value} {} {} {} {}", event.r#type(), kv.create_revision, kv.mod_revision, kv.version, kv.lease)
}

fn revision(header: Option<pb::ResponseHeader>) -> i64 {
    header.expect("a header").revision
}

/// Section 7 of the reference: expiry deletes all keys of a lease in one revision, in their order, and who waits for one of
/// them is served then.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_lease_by_time_is_as_etcds() {
    on_each(|channel| async move {
        let mut events = watch(&channel, "q/", 0).await;
        grant(&channel, 7, 3).await;
        grant(&channel, 8, 600).await;
        let locked = |lease| {
            let mut client = LockClient::new(channel.clone());
            async move { client.lock(lock::LockRequest { name: "q".into(), lease }).await.map(tonic::Response::into_inner) }
        };
        let mut said = vec![format!("{:?}", locked(7).await.map(|reply| (revision(reply.header), reply.key)))];
        for key in ["q/z", "q/a"] {
            let put = pb::PutRequest { key: key.into(), value: "v".into(), lease: 7, ..Default::default() };
            KvClient::new(channel.clone()).put(put).await.expect("written");
        }
        let candidate = election::CampaignRequest { name: "q".into(), lease: 8, value: "w".into() };
        let mut elections = ElectionClient::new(channel.clone());
        let elected = timeout(PATIENCE, elections.campaign(candidate)).await.expect("in time").expect("elected");
        let elected = elected.into_inner();
        said.push(format!("{} {:?}", revision(elected.header), elected.leader));
        let mut heard = 0;
        // Three puts, the candidate's, and three deletes of one revision. Balsa sends together what waits for the client, so how they
        // are spread over responses is a matter of time.
        while heard < 7 {
            let response = next(&mut events).await;
            heard += response.events.len();
            let last = response.events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
            assert!(revision(response.header) >= last, "a header from before its events");
            said.extend(response.events.iter().map(shown));
        }
        let mut leases = LeaseClient::new(channel.clone());
        let left = leases.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 7, keys: true }).await.expect("an answer");
        let left = left.into_inner();
        said.push(format!("{} {} {} {:?}", left.id, left.ttl, left.granted_ttl, left.keys));
        said
    })
    .await;
}

/// Who names no lease gets one of 60 s, which nobody renews and whose key bears its id.
#[tokio::test(flavor = "multi_thread")]
async fn who_names_no_lease_gets_one_of_a_minute() {
    on_each(|channel| async move {
        let request = lock::LockRequest { name: "l".into(), lease: 0 };
        let locked = LockClient::new(channel.clone()).lock(request).await.expect("locked").into_inner();
        let candidate = election::CampaignRequest { name: "e".into(), lease: 0, value: "w".into() };
        let elected = ElectionClient::new(channel.clone()).campaign(candidate).await.expect("elected").into_inner();
        let leader = elected.leader.expect("a leader");
        let mut said = vec![format!("{} {}", revision(locked.header), revision(elected.header))];
        for (prefix, key) in [("l/", locked.key), ("e/", leader.key)] {
            let text = String::from_utf8(key.to_vec()).expect("text");
            let id = i64::from_str_radix(text.strip_prefix(prefix).expect("under its name"), 16).expect("an id");
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            let lease = LeaseClient::new(channel.clone()).lease_time_to_live(request).await.expect("an answer");
            let lease = lease.into_inner();
            said.push(format!("{prefix} {} {} {}", lease.granted_ttl, lease.ttl > 50, lease.keys == [key]));
        }
        said
    })
    .await;
}

/// Section 6: catching up, a response holds at most 1000 distinct revisions, and none is split.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_the_past_gets_at_most_a_thousand_revisions_at_a_time() {
    const REVISIONS: i64 = 2500;
    on_each(|channel| async move {
        let mut client = KvClient::new(channel.clone());
        for number in 0..REVISIONS {
            let put = |key| pb::PutRequest { key, value: number.to_string().into(), ..Default::default() };
            let operation = |key: &'static str| pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(put(key.into()))),
            };
            let both = pb::TxnRequest { success: vec![operation("p/a"), operation("p/b")], ..Default::default() };
            client.txn(both).await.expect("written");
        }
        let mut stream = watch(&channel, "p/", 1).await;
        let (mut heard, mut last) = (0, 1);
        while last < REVISIONS + 1 {
            let response = next(&mut stream).await;
            let of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            let (first, end) = (of(&response.events[0]), response.events.last().map_or(0, of));
            // etcd's header is of the whole store, Balsa's of what was sent: a header promises nothing here.
            assert!(revision(response.header) >= end);
            assert!(first == last + 1 && end - last <= 1000, "{first} to {end}, after {last}");
            assert_eq!(response.events.len() as i64, 2 * (end - last), "a revision is not split");
            (heard, last) = (heard + response.events.len(), end);
        }
        vec![format!("{heard} events")]
    })
    .await;
}

/// Section 6: with `fragment`, a response over the bound on requests comes in parts, and each but the last says that there are
/// more. The events are of one revision, so that it is one response on every server.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_response_of_a_watch_is_cut_into_fragments_as_by_etcd() {
    on_each(|channel| async move {
        let mut client = KvClient::new(channel.clone());
        for (number, size) in [1_000_000, 1_000_000, 300_000, 300_000, 300_000, 1_500_000].into_iter().enumerate() {
            let (key, value) = (format!("f/{number}").into(), vec![b'v'; size].into());
            client.put(pb::PutRequest { key, value, ..Default::default() }).await.expect("written");
        }
        let delete = pb::DeleteRangeRequest { key: "f/".into(), range_end: "f0".into(), ..Default::default() };
        let deleted = revision(client.delete_range(delete).await.expect("deleted").into_inner().header);
        let create = pb::WatchCreateRequest {
            key: "f/".into(),
            range_end: "f0".into(),
            start_revision: deleted,
            prev_kv: true,
            fragment: true,
            ..Default::default()
        };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
        let mut client = WatchClient::new(channel).max_decoding_message_size(32 << 20);
        let mut stream = client.watch(requests).await.expect("a stream").into_inner();
        assert!(next(&mut stream).await.created);
        let (mut said, mut heard) = (Vec::new(), 0);
        while heard < 6 {
            let response = next(&mut stream).await;
            heard += response.events.len();
            let key = |event: &Event| String::from_utf8_lossy(&event.kv.clone().unwrap_or_default().key).into_owned();
            let keys: Vec<String> = response.events.iter().map(key).collect();
            said.push(format!("{} {}", keys.join(" "), response.fragment));
        }
        said
    })
    .await;
}

/// Section 9: no header, the version in each message, what remains counted down to 0, and then the hash of it all. Balsa's
/// messages hold 256 KiB where etcd's hold 32: no client counts them.
#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_a_snapshot_have_etcds_shape() {
    on_each(|channel| async move {
        let mut client = MaintenanceClient::new(channel);
        let mut saved = async || {
            let mut messages = client.snapshot(pb::SnapshotRequest {}).await.expect("a stream").into_inner();
            let mut all = Vec::new();
            while let Some(message) = timeout(PATIENCE, messages.message()).await.expect("in time").expect("no error") {
                all.push(message);
            }
            all
        };
        // etcd knows the version of its storage some seconds after its start only, and leaves it out until then; its status
        // may tell it a moment before its snapshots do.
        let of_known_storage = async {
            loop {
                let all = saved().await;
                if !all[0].version.is_empty() {
                    break all;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let mut all = timeout(PATIENCE, of_known_storage).await.expect("a version in time");
        let hash = all.pop().expect("a last message");
        let mut remaining = all[0].remaining_bytes + all[0].blob.len() as u64;
        let counts_down = all.iter().all(|message| {
            remaining -= message.blob.len() as u64;
            message.remaining_bytes == remaining
        });
        let shape = |message: &pb::SnapshotResponse| (message.header.is_some(), message.version.is_empty());
        vec![
            format!("{counts_down} {remaining} {} {}", hash.blob.len(), hash.remaining_bytes),
            format!("{:?} {}", shape(&hash), all.iter().all(|message| shape(message) == shape(&hash))),
        ]
    })
    .await;
}

/// Section 3: what a request says of itself besides its message.
#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_of_requests_is_taken_as_by_etcd() {
    const METADATA: [(&str, &[u8]); 6] = [
        ("hasleader", b"true"),
        ("hasleader", b"x"),
        ("client-api-version", b"3.6"),
        ("client-api-version", b""),
        ("client-api-version", b"x y"),
        ("client-api-version", b"3.6\xff"),
    ];
    on_each(|channel| async move {
        let mut said = Vec::new();
        for (name, value) in METADATA {
            let mut request = tonic::Request::new(pb::RangeRequest { key: "a".into(), ..Default::default() });
            let value = tonic::metadata::MetadataValue::try_from(value).expect("a value");
            request.metadata_mut().insert(name, value);
            let answer = KvClient::new(channel.clone()).range(request).await;
            let answer = answer.map(|reply| reply.into_inner().count);
            said.push(format!("{name} {:?}", answer.map_err(|status| (status.code(), status.message().to_owned()))));
        }
        said
    })
    .await;
}

/// A stream of renewals answers in order, each with the whole time, and 0 for a lease that is not there; the header is that
/// of before.
#[tokio::test(flavor = "multi_thread")]
async fn renewals_answer_in_order_with_the_whole_time() {
    on_each(|channel| async move {
        grant(&channel, 7, 100).await;
        grant(&channel, 8, 200).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let requests = [7, 8, 9, 7, 0, -1].map(|id| pb::LeaseKeepAliveRequest { id });
        let answers = LeaseClient::new(channel.clone()).lease_keep_alive(tokio_stream::iter(requests)).await;
        let mut answers = answers.expect("a stream").into_inner();
        let mut said = Vec::new();
        while let Some(answer) = timeout(PATIENCE, answers.message()).await.expect("in time").expect("no error") {
            said.push(format!("{} {} at {}", answer.id, answer.ttl, revision(answer.header)));
        }
        said
    })
    .await;
}
