//! Readiness and liveness. Readiness is a read index that the engine's background check brought through within the last
//! 2 s, on a voter that is not on its way out and that its operator holds for the right cluster. Liveness depends on
//! nothing outside the process: never on quorum or peers.

use std::future;
use std::time::{Duration, Instant};

use balsa_proto::etcdserverpb::{AlarmMember, AlarmType};

use super::failure::Error;
use super::member::Member;
use super::watch;
use crate::engine::Failure;
use crate::metrics;

/// How old the last confirmed read index may be. Longer than an election, so that one does not unready the cluster.
pub const READ_INDEX_FRESH: Duration = Duration::from_secs(2);

/// How long Raft may stand still before the process is not alive: far above what a slow disk costs, and above any tick.
pub const STANDS_STILL: Duration = Duration::from_secs(60);

/// One named check and its result; the error says why it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The name in sub-paths, in `?exclude=` and in the verbose body.
    pub name: &'static str,
    /// What it found.
    pub result: Result<(), String>,
}

/// The checks of `/livez`: etcd's one, which also fails when Raft stands still. A node that waits to be told what it is, is
/// alive. Applying does not count: one large command may take as long as it likes, and a restart would only begin it anew.
pub fn live(member: &Member) -> Vec<Check> {
    let result = serializable_read(member, true).and_then(|()| raft_loop(member));
    vec![Check { name: "serializable_read", result }]
}

/// The checks of `/readyz`: etcd's, in its order, then ours.
pub fn ready(member: &Member) -> Vec<Check> {
    vec![
        Check { name: "data_corruption", result: data_corruption(member) },
        Check { name: "serializable_read", result: serializable_read(member, false) },
        Check { name: "linearizable_read", result: linearizable_read(member) },
        Check { name: "non_learner", result: non_learner(member) },
        Check { name: "not_draining", result: not_draining(member) },
        Check { name: "cluster_id", result: cluster_id(member) },
    ]
}

/// What gRPC's health service says: that this is a member and not on its way out. As in etcd it does not depend on a leader:
/// reads of its own are served without one. Defragmentation stops nobody, so it does not count.
pub fn serves(member: &Member) -> bool {
    member.handle().is_ok() && !member.is_draining()
}

/// Resolves once this member has known no leader for so long that streams which require one are ended.
pub async fn leader_lost(member: &Member) {
    match member.handle() {
        Ok(handle) => {
            let patience = watch::patience(handle.election_timeout());
            watch::leader_lost(handle, patience).await;
        }
        Err(_) => future::pending().await,
    }
}

/// Whether all checks of `/readyz` pass.
pub fn is_ready(member: &Member) -> bool {
    ready(member).iter().all(|check| check.result.is_ok())
}

/// etcd's `/health`: a read through the cluster, or of this member alone with `serializable`. An alarm of the cluster
/// counts unless its name is among `excluded`. The error is the `reason` of the answer.
///
/// # Errors
/// `ALARM` and its name, `RAFT NO LEADER`, or `RANGE ERROR:` and the text of the failure.
pub async fn health(member: &Member, serializable: bool, excluded: &[&str]) -> Result<(), String> {
    let result = check_health(member, serializable, excluded).await;
    if result.is_ok() {
        metrics::HEALTH_SUCCESS.inc()
    } else {
        metrics::HEALTH_FAILURES.inc()
    }
    result
}

async fn check_health(member: &Member, serializable: bool, excluded: &[&str]) -> Result<(), String> {
    let range_error = |error: Error| format!("RANGE ERROR:{}", error.row().text);
    let handle = member.handle().map_err(|failure| range_error(failure.into()))?;
    if let Some(alarm) = counted_alarm(&handle.status().maintenance.alarms, excluded) {
        return Err(format!("ALARM {alarm}"));
    }
    if serializable {
        return handle.view().map(drop).map_err(|failure| range_error(failure.into()));
    }
    if handle.status().leader == 0 {
        return Err("RAFT NO LEADER".to_owned());
    }
    handle.read_index().await.map_err(|failure| range_error(failure.into()))
}

/// The first raised alarm that is not excluded.
fn counted_alarm(alarms: &[AlarmMember], excluded: &[&str]) -> Option<&'static str> {
    alarms.iter().map(|raised| raised.alarm().as_str_name()).find(|name| !excluded.contains(name))
}

/// Publishes the results of checks: of which kind, such as `readyz`.
pub fn publish(kind: &str, checks: &[&Check]) {
    for check in checks {
        let (value, status) = if check.result.is_ok() { (1, "success") } else { (0, "error") };
        metrics::HEALTH_CHECK.with_label_values(&[kind, check.name]).set(value);
        metrics::HEALTH_CHECKS.with_label_values(&[kind, check.name, status]).inc();
    }
}

/// What `/debug/vars` says of Raft, in etcd's names; `null` while this is no member.
pub fn raft_status(member: &Member) -> serde_json::Value {
    let Ok(handle) = member.handle() else { return serde_json::Value::Null };
    let status = handle.status();
    let state = match (status.is_leader(), status.is_learner()) {
        (true, _) => "StateLeader",
        (_, true) => "StateLearner",
        _ => "StateFollower",
    };
    let progress = status.progress.iter().map(|peer| {
        let state = if peer.snapshot_running { "StateSnapshot" } else { "StateReplicate" };
        let entry = serde_json::json!({"match": peer.match_index, "next": peer.match_index + 1, "state": state});
        (format!("{:x}", peer.id), entry)
    });
    serde_json::json!({
        "id": format!("{:x}", status.raft_id),
        "term": status.term,
        "commit": status.commit,
        "lead": format!("{:x}", status.leader),
        "raftState": state,
        "applied": status.applied,
        "progress": progress.collect::<serde_json::Map<_, _>>(),
    })
}

fn data_corruption(member: &Member) -> Result<(), String> {
    let raised = member.handle().is_ok_and(|handle| {
        handle.status().maintenance.alarms.iter().any(|raised| raised.alarm() == AlarmType::Corrupt)
    });
    if raised { Err("alarm activated: CORRUPT".to_owned()) } else { Ok(()) }
}

fn serializable_read(member: &Member, while_uninitialized: bool) -> Result<(), String> {
    match member.handle() {
        Err(Failure::Uninitialized) if while_uninitialized => Ok(()),
        Err(failure) => Err(failure.to_string()),
        Ok(handle) => handle.view().map(drop).map_err(|failure| failure.to_string()),
    }
}

fn raft_loop(member: &Member) -> Result<(), String> {
    member.handle().map_or(Ok(()), |handle| turns(handle.status().turned, Instant::now()))
}

fn turns(last: Option<Instant>, now: Instant) -> Result<(), String> {
    match last.map(|last| now.saturating_duration_since(last)) {
        Some(still) if still > STANDS_STILL => Err(format!("the Raft loop has stood still for {} s", still.as_secs())),
        _ => Ok(()),
    }
}

fn linearizable_read(member: &Member) -> Result<(), String> {
    let handle = member.handle().map_err(|failure| failure.to_string())?;
    fresh(handle.last_read_index(), Instant::now())
}

fn fresh(last: Option<Instant>, now: Instant) -> Result<(), String> {
    match last.map(|last| now.saturating_duration_since(last)) {
        None => Err("no read has been confirmed yet".to_owned()),
        Some(age) if age > READ_INDEX_FRESH => Err(format!("the last confirmed read is {} ms old", age.as_millis())),
        Some(_) => Ok(()),
    }
}

fn non_learner(member: &Member) -> Result<(), String> {
    let handle = member.handle().map_err(|failure| failure.to_string())?;
    if handle.status().is_learner() { Err("not supported for learner".to_owned()) } else { Ok(()) }
}

fn not_draining(member: &Member) -> Result<(), String> {
    if member.is_draining() { Err("the node is stopping".to_owned()) } else { Ok(()) }
}

fn cluster_id(member: &Member) -> Result<(), String> {
    match member.foreign_cluster() {
        Some(expected) => Err(format!("the node is held for a member of cluster {expected:x}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_counts_unless_it_is_excluded() {
        let alarm = |alarm: AlarmType| AlarmMember { member_id: 1, alarm: alarm.into() };
        let both = [alarm(AlarmType::Nospace), alarm(AlarmType::Corrupt)];
        assert_eq!(counted_alarm(&both, &[]), Some("NOSPACE"));
        assert_eq!(counted_alarm(&both, &["NOSPACE"]), Some("CORRUPT"));
        assert_eq!(counted_alarm(&both, &["NOSPACE", "CORRUPT", "x"]), None);
        assert_eq!(counted_alarm(&[], &[]), None);
    }

    #[test]
    fn a_raft_loop_that_stands_still_for_a_minute_is_not_alive() {
        let then = Instant::now();
        assert!(turns(None, then).is_ok(), "it has yet to begin");
        assert!(turns(Some(then), then + STANDS_STILL).is_ok());
        assert_eq!(
            turns(Some(then), then + STANDS_STILL + Duration::from_secs(1)),
            Err("the Raft loop has stood still for 61 s".to_owned())
        );
    }

    #[test]
    fn a_confirmed_read_is_fresh_for_two_seconds() {
        let then = Instant::now();
        assert!(fresh(None, then).is_err());
        assert!(fresh(Some(then), then).is_ok());
        assert!(fresh(Some(then), then + READ_INDEX_FRESH).is_ok());
        assert_eq!(
            fresh(Some(then), then + READ_INDEX_FRESH + Duration::from_millis(1)),
            Err("the last confirmed read is 2001 ms old".to_owned())
        );
    }
}
