//! A member with nothing to do sleeps (decision 0109), as the kernel counts it.

use std::fs;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;

/// How often the thread of this name of a process went to sleep.
fn sleeps(process: u32, name: &str) -> u64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the threads of a process");
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let value =
        |status: &str, key: &str| status.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()));
    let of_it = statuses.filter(|status| value(status, "Name:").as_deref() == Some(name));
    of_it.map(|status| value(&status, "voluntary_ctxt_switches:").map_or(0, |count| count.parse().unwrap_or(0))).sum()
}

/// Ten ticks a second, and the reads by which two followers tell twice a second whether they are ready: on the leader 12 more, on another one
/// 8. Twenty answers to heartbeats, or ten heartbeats, would come on top.
#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_happens_ticks_and_reads_alone_wake_the_thread_of_raft() {
    let cluster = Cluster::start(3).await;
    let (window, of_leader, of_another) = (Duration::from_secs(2), 26, 25);
    let rests = || async {
        let count = || cluster.members.iter().map(|member| sleeps(member.pid(), "driver")).collect::<Vec<_>>();
        let (leader, began, before) = (cluster.leader().await, Instant::now(), count());
        tokio::time::sleep(window).await;
        let per_second = |count: u64| (count as f64 / began.elapsed().as_secs_f64()) as u64;
        let counted: Vec<u64> = count().iter().zip(before).map(|(after, before)| per_second(after - before)).collect();
        println!("{counted:?} a second, the leader is {leader}");
        let bound = |index| if index == leader { of_leader } else { of_another };
        counted.iter().enumerate().all(|(index, count)| *count > 0 && *count <= bound(index))
    };
    cluster.eventually("they rest", rests).await;
}
