//! How long the threads of a member ask to run at a time, as the kernel shows it (decision 0086).

use std::fs;

use balsa_proto::etcdserverpb as pb;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Member};

/// In ns, of each thread of a process.
fn slices(process: u32) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the threads of a process");
    let shown = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("sched")).ok());
    let slice = |shown: String| {
        let line = shown.lines().find(|line| line.starts_with("se.slice"))?.to_owned();
        line.rsplit_once(':')?.1.trim().parse().ok()
    };
    shown.filter_map(slice).collect()
}

/// Linux takes slices of threads from 6.12 on. Of many processors a member is not busy by what this test asks.
fn are_taken() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the release of the kernel");
    let mut numbers = release.split(['.', '-']).map(|number| number.trim().parse().unwrap_or(0));
    let few = std::thread::available_parallelism().is_ok_and(|count| count.get() <= 8);
    few && (numbers.next(), numbers.next()) >= (Some(6), Some(12)) && !slices(std::process::id()).is_empty()
}

/// Who runs the tests may have given them another niceness or policy, and then a member keeps it.
fn is_ranked() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").expect("the stat of a process");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name in parentheses").1.split_whitespace().collect();
    (fields[19 - 3], fields[41 - 3]) != ("0", "0")
}

/// Counts many keys again and again until it is dropped.
async fn busy(member: &Member) -> JoinSet<()> {
    for first in (0..5_000).step_by(100) {
        let put = |number| pb::PutRequest { key: format!("k/{number:06}").into(), ..Default::default() };
        let op = |put| pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
        let success = (first..first + 100).map(put).map(op).collect();
        member.kv().txn(pb::TxnRequest { success, ..Default::default() }).await.expect("a write");
    }
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let mut kv = member.kv();
        tasks.spawn(async move {
            let all =
                pb::RangeRequest { key: "k".into(), range_end: "l".into(), count_only: true, ..Default::default() };
            while kv.range(all.clone()).await.is_ok_and(|answer| answer.get_ref().count == 5_000) {}
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_short_until_the_member_is_busy_itself_and_short_again_when_it_rests() {
    if !are_taken() {
        return;
    }
    let cluster = Cluster::start(1).await;
    let (pid, usual) = (cluster.members[0].pid(), slices(std::process::id())[0]);
    let all = |wanted: u64| {
        move || async move {
            let present = slices(pid);
            !present.is_empty() && present.iter().all(|slice| *slice == wanted)
        }
    };
    let short = if is_ranked() { usual } else { 100_000 };
    cluster.eventually("a member that rests has short slices", all(short)).await;
    let mut load = busy(&cluster.members[0]).await;
    cluster.eventually("one that is busy has the kernel's own", all(usual)).await;
    load.shutdown().await;
    cluster.eventually("one that rests again has short ones", all(short)).await;
}
