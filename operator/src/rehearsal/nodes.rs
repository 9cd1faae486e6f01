//! The nodes' face of the model: the node service of each running pod, with the refusals of the contract.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::etcdserverpb::{AlarmMember, AlarmType};
use balsa_proto::log::{Member as ListedMember, Membership};
use balsa_proto::node::node_server::{Node, NodeServer};
use balsa_proto::node::{
    AddRequest, BootstrapRequest, BootstrapResponse, ChangeResponse, GetConfigRequest, GetConfigResponse, JoinRequest,
    JoinResponse, ListRequest, ListResponse, MoveLeaderRequest, MoveLeaderResponse, PrepareStopRequest,
    PrepareStopResponse, Progress, PromoteRequest, RemoveRequest, Role, SetConfigRequest, SetConfigResponse, State,
    StateRequest, StateResponse,
};
use tokio::task::yield_now;
use tonic::{Request, Response, Status, async_trait};
use tower::ServiceExt;

use super::stage::{Shared, Stage, lock};
use crate::members::{Dial, Transport};
use crate::observed::{Alarm, Marker, NodeReport};
use crate::plan::simulation::Refused;
use crate::step::PodRef;

/// Reaches the model's nodes.
pub(super) struct Nodes(pub(super) Shared);

impl Dial for Nodes {
    fn dial(&self, address: SocketAddr, _: Duration) -> Transport {
        let node = NodeServer::new(Face { stage: Arc::clone(&self.0), address: address.ip() });
        let node =
            ServiceExt::<axum::http::Request<tonic::body::Body>>::map_err(node, |never: Infallible| match never {});
        Transport::new(node)
    }
}

/// One node, or the silence at its address.
struct Face {
    stage: Shared,
    address: IpAddr,
}

impl Face {
    /// Reads from the process at the address.
    async fn ask<T>(&self, read: impl FnOnce(&mut Stage, u32) -> Result<T, Status>) -> Result<Response<T>, Status> {
        yield_now().await;
        let mut stage = lock(&self.stage);
        let k = stage.process_at(self.address).ok_or_else(silence)?;
        read(&mut stage, k).map(Response::new)
    }

    /// Changes something by way of the process at the address, if that is who is meant. `T` is an answer that nobody looks
    /// into.
    async fn order<T: Default>(
        &self,
        what: String,
        meant: Meant,
        change: impl FnOnce(&mut Stage, &PodRef) -> Result<(), Refused>,
    ) -> Result<Response<T>, Status> {
        self.ask(|stage, k| {
            let pod = stage.pod_ref(k).ok_or_else(silence)?;
            let reply = stage.write(what, |stage| {
                let done = meant.check(stage, k).and_then(|()| change(stage, &pod));
                done.map_err(|refused| stage.refuse(refused))
            });
            match reply {
                None => Err(silence()),
                Some(Ok(())) => Ok(T::default()),
                Some(Err(refused)) => Err(refusal(refused)),
            }
        })
        .await
    }
}

/// Whom a call is for. Zeros are for whoever is asked.
enum Meant {
    /// An empty disk, or one that is this member's already, as the model sees to itself.
    Empty,
    Cluster(u64),
    Member(Marker),
}

impl Meant {
    /// The node's part of the contract. What a stranger at the address takes for itself is a violation.
    fn check(&self, stage: &mut Stage, k: u32) -> Result<(), Refused> {
        let stranger = stage.strangers.then_some(STRANGER);
        let own = stranger.or_else(|| stage.world.volumes.get(&k)?.disk);
        match self {
            Self::Empty if stranger.is_none() => {}
            Self::Cluster(0) => {}
            Self::Cluster(id) if own.is_some_and(|own| own.cluster_id == *id) => {}
            Self::Cluster(_) => return Err(Refused::Node("ClusterIdMismatch")),
            Self::Member(Marker { cluster_id: 0, raft_id: 0, incarnation: 0 }) => {}
            Self::Member(marker) if own == Some(*marker) => {}
            Self::Member(_) | Self::Empty => return Err(Refused::Node("WrongDisk")),
        }
        if stranger.is_some() {
            let what = stage.writes.last().cloned().unwrap_or_default();
            stage.world.violations.push(format!("another cluster's member was told: {what}"));
        }
        Ok(())
    }
}

/// The member of another cluster that has the addresses of ours.
const STRANGER: Marker = Marker { cluster_id: 0xbad, raft_id: 1, incarnation: 1 };

fn silence() -> Status {
    Status::unavailable("nobody answers")
}

fn refusal(refused: Refused) -> Status {
    let reason = match refused {
        Refused::Conflict | Refused::Budget | Refused::Settings | Refused::Policy => "InvalidRequest",
        Refused::ConfigChanged => "ConfigChanged",
        Refused::Node(reason) => reason,
    };
    let mut status = Status::failed_precondition(reason);
    if let Ok(value) = reason.parse() {
        status.metadata_mut().insert("balsa-reason", value);
    }
    status
}

fn alarm((kind, member_id): (Alarm, u64)) -> AlarmMember {
    let alarm = match kind {
        Alarm::NoSpace => AlarmType::Nospace,
        Alarm::Corrupt => AlarmType::Corrupt,
    };
    AlarmMember { member_id, alarm: alarm.into() }
}

/// Changes go to the leader; no node passes them on.
fn leads(stage: &Stage, pod: &PodRef) -> Result<(), Refused> {
    let id = stage.world.listed(pod.ordinal).map(|(id, _)| id);
    if id == Some(stage.world.raft.leader) { Ok(()) } else { Err(Refused::Node("NoLeader")) }
}

#[async_trait]
impl Node for Face {
    async fn state(&self, request: Request<StateRequest>) -> Result<Response<StateResponse>, Status> {
        self.ask(|stage, k| {
            stage.told.insert(k, request.get_ref().cluster_id);
            let NodeReport::Answered(report) = stage.world.report(k) else { return Err(silence()) };
            let Marker { cluster_id, raft_id, incarnation } =
                report.marker.unwrap_or(Marker { cluster_id: 0, raft_id: 0, incarnation: 0 });
            let state = if report.marker.is_some() { State::Member } else { State::Uninitialized };
            let role = match (report.marker, report.voter) {
                (None, _) => Role::None,
                (Some(_), false) => Role::Learner,
                (Some(_), true) => Role::Voter,
            };
            Ok(StateResponse {
                state: state.into(),
                name: Stage::pod_name(k),
                version: "0.1.0".into(),
                cluster_id,
                raft_id,
                incarnation,
                role: role.into(),
                leader: report.leader,
                term: report.term,
                membership_index: report.membership_index,
                ready: report.ready,
                stopping: report.stopping,
                ..StateResponse::default()
            })
        })
        .await
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.ask(|stage, k| {
            let member = stage.world.listed(k).is_some_and(|(id, _)| stage.world.is_up(id));
            let list = stage.lies.get(&k).cloned().or_else(|| stage.world.list().filter(|_| member));
            let list = list.ok_or_else(|| refusal(Refused::Node("NoLeader")))?;
            let progress = list.members.iter().filter_map(|(id, member)| {
                let known = member.progress?;
                Some(Progress {
                    id: *id,
                    match_index: known.match_index,
                    active: known.active,
                    snapshot_running: known.snapshot_running,
                    caught_up: known.caught_up,
                    still_seconds: u64::try_from(known.still_seconds).unwrap_or_default(),
                })
            });
            let progress = progress.collect();
            let members = list.members.into_iter().map(|(id, member)| ListedMember {
                id,
                name: member.name,
                peer_urls: member.peer_urls,
                is_learner: member.learner,
                started: member.started,
                ..ListedMember::default()
            });
            let membership = Membership {
                cluster_id: list.cluster_id,
                index: list.membership_index,
                members: members.collect(),
                removed: list.removed.into_iter().collect(),
                ..Membership::default()
            };
            Ok(ListResponse {
                membership: Some(membership),
                leader: list.leader,
                term: list.term,
                commit_index: list.commit_index,
                change_in_flight: list.change_in_flight,
                progress,
                alarms: list.alarms.into_iter().map(alarm).collect(),
            })
        })
        .await
    }

    async fn bootstrap(&self, request: Request<BootstrapRequest>) -> Result<Response<BootstrapResponse>, Status> {
        let BootstrapRequest { cluster_id, peer_urls, .. } = request.into_inner();
        let url = peer_urls.into_iter().next().unwrap_or_default();
        self.order("bootstrap".into(), Meant::Empty, |stage, pod| stage.world.found(pod, cluster_id, &url)).await
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let JoinRequest { cluster_id, raft_id, incarnation, .. } = request.into_inner();
        let marker = Marker { cluster_id, raft_id, incarnation };
        self.order(format!("join {raft_id}"), Meant::Empty, |stage, pod| stage.world.join(pod, marker)).await
    }

    async fn add(&self, request: Request<AddRequest>) -> Result<Response<ChangeResponse>, Status> {
        let AddRequest { membership_index, peer_urls, cluster_id } = request.into_inner();
        let url = peer_urls.into_iter().next().unwrap_or_default();
        self.order(format!("add {url}"), Meant::Cluster(cluster_id), |stage, pod| {
            leads(stage, pod)?;
            stage.world.add(&url, membership_index)
        })
        .await
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<ChangeResponse>, Status> {
        let PromoteRequest { membership_index, id, cluster_id } = request.into_inner();
        self.order(format!("promote {id}"), Meant::Cluster(cluster_id), |stage, pod| {
            leads(stage, pod)?;
            stage.world.promote(id, membership_index)
        })
        .await
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<ChangeResponse>, Status> {
        let RemoveRequest { membership_index, id, cluster_id } = request.into_inner();
        self.order(format!("remove {id}"), Meant::Cluster(cluster_id), |stage, pod| {
            leads(stage, pod)?;
            stage.world.remove(id, membership_index)
        })
        .await
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let MoveLeaderRequest { target, cluster_id, leader } = request.into_inner();
        self.order(format!("move leader to {target}"), Meant::Cluster(cluster_id), |stage, pod| {
            leads(stage, pod)?;
            if leader == 0 {
                stage.world.violations.push("nobody in particular was told to hand over".into());
            }
            match leader == stage.world.raft.leader || target == stage.world.raft.leader {
                true => stage.world.move_leader(leader, target),
                false => Err(Refused::ConfigChanged),
            }
        })
        .await
    }

    async fn prepare_stop(
        &self,
        request: Request<PrepareStopRequest>,
    ) -> Result<Response<PrepareStopResponse>, Status> {
        let PrepareStopRequest { cluster_id, raft_id, incarnation } = request.into_inner();
        let meant = Marker { cluster_id, raft_id, incarnation };
        self.order("prepare stop".into(), Meant::Member(meant), |stage, pod| stage.world.prepare_stop(pod, meant)).await
    }

    async fn set_config(&self, request: Request<SetConfigRequest>) -> Result<Response<SetConfigResponse>, Status> {
        let SetConfigRequest { version, settings, cluster_id, raft_id, incarnation } = request.into_inner();
        let meant = Meant::Member(Marker { cluster_id, raft_id, incarnation });
        let settings = settings.into_iter().collect();
        let taken: Response<SetConfigResponse> = self
            .order(format!("set config {version}"), meant, |stage, pod| stage.world.set_config(pod, version, &settings))
            .await?;
        Ok(taken.map(|answer| SetConfigResponse { version, ..answer }))
    }

    async fn get_config(&self, _: Request<GetConfigRequest>) -> Result<Response<GetConfigResponse>, Status> {
        self.ask(|stage, k| {
            let settings = stage.world.pods.get(&k).map(|pod| pod.settings.clone()).unwrap_or_default();
            let (refused, refusal) = settings.refused.unwrap_or_default();
            Ok(GetConfigResponse {
                version: settings.version,
                settings: settings.values.into_iter().collect(),
                refused: refused.into_iter().collect(),
                refusal,
                ..GetConfigResponse::default()
            })
        })
        .await
    }
}
