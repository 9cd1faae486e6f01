//! Asks every node at once what it is, and the cluster who its members are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use balsa_proto::etcdserverpb::{AlarmMember, AlarmType};
use balsa_proto::node::{GetConfigResponse, ListResponse, Role, State, StateResponse};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tonic::Code;

use super::lists::{Told, believed};
use crate::members::{Dial, Node, NodeError, OBSERVE_TIMEOUT};
use crate::names;
use crate::observed::{Alarm, Dissent, Marker, Member, MemberList, NodeReport, NodeState, Progress, Settings};

type Answers = (BTreeMap<u32, NodeReport>, Option<MemberList>, Option<Dissent>);

/// What each pod's node reports, the list of members that is believed, and who tells otherwise. Takes at most the observation
/// timeout, however many nodes are silent.
pub(super) async fn ask(
    dial: &dyn Dial,
    addresses: &BTreeMap<u32, IpAddr>,
    cluster: &str,
    latched: Option<u64>,
) -> Answers {
    let answers = join_all(addresses.iter().map(|(ordinal, ip)| async move {
        (*ordinal, ask_one(dial, &names::pod(cluster, *ordinal), *ip, latched).await)
    }))
    .await;
    let told: Told = answers.into_iter().collect();
    let (list, dissent) = believed(&told, latched);
    (told.into_iter().map(|(ordinal, (report, _))| (ordinal, report)).collect(), list, dissent)
}

/// Addresses of the pods that may have a process, by ordinal.
pub(super) fn addresses(pods: &[Pod], cluster: &str) -> BTreeMap<u32, IpAddr> {
    pods.iter().filter_map(|pod| Some((names::pod_ordinal(cluster, &pod.name_any())?, address(pod)?))).collect()
}

fn address(pod: &Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    status.pod_ip.as_deref()?.parse().ok()
}

async fn ask_one(dial: &dyn Dial, pod: &str, ip: IpAddr, latched: Option<u64>) -> (NodeReport, Option<MemberList>) {
    let node = || Node::at(dial, ip, OBSERVE_TIMEOUT);
    let (mut for_state, mut for_list, mut for_settings) = (node(), node(), node());
    let (state, list, settings) =
        tokio::join!(for_state.state(latched.unwrap_or_default()), for_list.list(), for_settings.get_config());
    match state {
        // Another name means that the address has gone to another pod since the API server was read.
        Ok(state) if state.name == pod => {
            let keeps_settings = matches!(&settings, Err(NodeError::Failed { code: Code::Unimplemented, .. }));
            let settings = settings.ok().map(node_settings);
            let state = NodeState { settings, keeps_settings, ..node_state(state) };
            (NodeReport::Answered(state), list.ok().and_then(member_list))
        }
        Ok(_) | Err(_) => (NodeReport::Unreachable, None),
    }
}

fn node_state(state: StateResponse) -> NodeState {
    let (kind, role) = (state.state(), state.role());
    let StateResponse {
        state: _,
        name,
        version,
        cluster_id,
        raft_id,
        incarnation,
        role: _,
        leader,
        term,
        commit_index,
        applied_index,
        membership_index,
        ready,
        stopping,
        config_hash,
        config_version: _,
    } = state;
    NodeState {
        marker: (kind == State::Member).then_some(Marker { cluster_id, raft_id, incarnation }),
        name,
        version,
        voter: role == Role::Voter,
        leader,
        term,
        commit_index,
        applied_index,
        membership_index,
        ready,
        stopping,
        config_hash,
        ..NodeState::default()
    }
}

fn node_settings(config: GetConfigResponse) -> Settings {
    let GetConfigResponse { version, config_hash: _, settings, refused, refusal } = config;
    let refused = (!refusal.is_empty()).then(|| (refused.into_iter().collect(), refusal));
    Settings { version, values: settings.into_iter().collect(), refused }
}

fn member_list(list: ListResponse) -> Option<MemberList> {
    let ListResponse { membership, leader, term, commit_index, change_in_flight, progress, alarms } = list;
    let membership = membership?;
    let progress: BTreeMap<u64, Progress> = progress
        .into_iter()
        .map(|p| {
            let known = Progress {
                match_index: p.match_index,
                active: p.active,
                snapshot_running: p.snapshot_running,
                caught_up: p.caught_up,
                still_seconds: i64::try_from(p.still_seconds).unwrap_or(i64::MAX),
            };
            (p.id, known)
        })
        .collect();
    let members = membership.members.into_iter().map(|member| {
        let known = Member {
            name: member.name,
            peer_urls: member.peer_urls,
            learner: member.is_learner,
            started: member.started,
            progress: progress.get(&member.id).copied(),
        };
        (member.id, known)
    });
    Some(MemberList {
        cluster_id: membership.cluster_id,
        membership_index: membership.index,
        leader,
        term,
        commit_index,
        change_in_flight,
        members: members.collect(),
        removed: membership.removed.into_iter().collect(),
        alarms: alarms.iter().filter_map(alarm).collect(),
    })
}

fn alarm(raised: &AlarmMember) -> Option<(Alarm, u64)> {
    let kind = match raised.alarm() {
        AlarmType::Nospace => Alarm::NoSpace,
        AlarmType::Corrupt => Alarm::Corrupt,
        AlarmType::None => return None,
    };
    Some((kind, raised.member_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_a_process_is_not_asked() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "db-0"}, "status": status})).expect("a pod")
        };
        assert!(address(&pod(serde_json::json!({"phase": "Failed", "podIP": "10.0.0.1"}))).is_none());
        assert!(address(&pod(serde_json::json!({"phase": "Pending"}))).is_none());
        assert!(address(&pod(serde_json::json!({"phase": "Running", "podIP": "fd00::1"}))).is_some());
    }
}
