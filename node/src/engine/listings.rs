//! What the other members list, and what that says of this node and its disk: pure, but for the asking.

use std::time::Duration;

use balsa_proto::log::{Marker, Member, Membership, Seed};
use balsa_proto::peer::MembersResponse;

use super::node::{FORMAT_VERSION, NodeConfig, random};
use super::start_error::StartError;
use crate::transport::tonic::Dialer;

/// A peer that does not answer within this long is unknown.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// What each peer that answers says of the membership.
pub(super) async fn ask(dialer: &Dialer, urls: &[String]) -> Vec<MembersResponse> {
    ask_for(dialer, urls, ASK_TIMEOUT).await
}

/// The same, with as much time for each as `timeout` says.
pub(super) async fn ask_for(dialer: &Dialer, urls: &[String], timeout: Duration) -> Vec<MembersResponse> {
    let asked = urls.iter().map(|url| dialer.members(url, timeout));
    futures::future::join_all(asked).await.into_iter().flatten().filter(|answer| answer.initialized).collect()
}

pub(super) fn overlap(left: &[String], right: &[String]) -> bool {
    left.iter().any(|url| right.contains(url))
}

/// An empty disk at a URL whose member has started before is a lost disk.
pub(super) fn check_not_started(own_urls: &[String], answers: &[MembersResponse]) -> Result<(), StartError> {
    for membership in answers.iter().filter_map(|answer| answer.membership.as_ref()) {
        let own = membership.members.iter().find(|member| overlap(&member.peer_urls, own_urls));
        if let Some(member) = own.filter(|member| member.started) {
            return Err(StartError::DiskLost(format!(
                "the disk is empty, but cluster {:x} lists {} as member {:x}, which has started before: it must be \
                 removed, and this node added as a new member",
                membership.cluster_id,
                own_urls.join(","),
                member.id
            )));
        }
    }
    Ok(())
}

/// A disk with a marker and no data is that of a joiner. Who has told the cluster that it runs had data.
pub(super) fn check_never_started(marker: &Marker, answers: &[MembersResponse]) -> Result<(), StartError> {
    let listings = answers.iter().filter_map(|answer| answer.membership.as_ref());
    let mut ours = listings.filter(|membership| membership.cluster_id == marker.cluster_id);
    let started = |membership: &Membership| {
        membership.members.iter().any(|member| member.id == marker.member_id && member.started)
    };
    match ours.any(started) {
        true => Err(StartError::DiskLost(format!(
            "the disk has the marker of member {:x} and no data, but cluster {:x} says that it has started before: it must be \
             removed, and this node added as a new member on an empty disk",
            marker.member_id, marker.cluster_id
        ))),
        false => Ok(()),
    }
}

pub(super) fn check_not_removed(marker: &Marker, answers: &[MembersResponse]) -> Result<(), StartError> {
    for membership in answers.iter().filter_map(|answer| answer.membership.as_ref()) {
        if membership.cluster_id == marker.cluster_id && membership.removed.contains(&marker.member_id) {
            return Err(StartError::MemberRemoved(format!(
                "cluster {:x} has removed member {:x}, whose disk this is",
                marker.cluster_id, marker.member_id
            )));
        }
    }
    Ok(())
}

/// A cluster that has a leader is not lost: a member of it that went on alone would be a second cluster of the same name. Who has
/// just lost its leader still names it, and is asked again by the next start.
pub(super) fn check_leaderless(marker: &Marker, answers: &[MembersResponse]) -> Result<(), StartError> {
    let ours = |answer: &&MembersResponse| {
        answer.membership.as_ref().is_some_and(|membership| membership.cluster_id == marker.cluster_id)
    };
    match answers.iter().filter(ours).find(|answer| answer.leader != 0) {
        Some(answer) => Err(StartError::Config(format!(
            "--force-new-cluster is for a cluster that has lost its quorum, and other members of cluster {:x} run and name \
             member {:x} as their leader: stop them first, or start without the flag. Nothing is changed",
            marker.cluster_id, answer.leader
        ))),
        None => Ok(()),
    }
}

/// A disk that was put into another member's place would make two processes one member, or have a member of one cluster
/// answer in place of another's. `listed` is what the members say that the flags name. Of its own cluster only the disk itself
/// is asked: a member that moves to new URLs is told so by the cluster before it starts there.
pub(super) fn check_place(
    marker: &Marker,
    own: &Membership,
    listed: &[MembersResponse],
    config: &NodeConfig,
) -> Result<(), StartError> {
    let foreign = listed.iter().filter_map(|answer| answer.membership.as_ref());
    let foreign = foreign.filter(|membership| membership.cluster_id != marker.cluster_id);
    let itself = |cluster: &Membership, member: &Member| {
        (cluster.cluster_id, member.id) == (marker.cluster_id, marker.member_id)
    };
    for cluster in std::iter::once(own).chain(foreign) {
        let here = |member: &&Member| !itself(cluster, member) && overlap(&member.peer_urls, &config.peer_urls);
        let Some(other) = cluster.members.iter().find(here) else { continue };
        return Err(StartError::WrongDisk(format!(
            "{} is the disk of member {:x} of cluster {:x}, but {} is where cluster {:x} has member {:x}",
            config.data_dir.display(),
            marker.member_id,
            marker.cluster_id,
            config.peer_urls.join(","),
            cluster.cluster_id,
            other.id
        )));
    }
    Ok(())
}

/// A member that founds a cluster must not be one of another that runs already: it would be missed there.
pub(super) fn check_unlisted(
    cluster_id: u64,
    answers: &[MembersResponse],
    own_urls: &[String],
) -> Result<(), StartError> {
    let running = answers.iter().filter_map(|answer| answer.membership.as_ref());
    for cluster in running.filter(|membership| membership.cluster_id != cluster_id) {
        let Some(own) = cluster.members.iter().find(|member| overlap(&member.peer_urls, own_urls)) else { continue };
        return Err(StartError::Config(format!(
            "initial-cluster-state is new, but the cluster {:x} runs already and has the member {:x} at {}: \
             with initial-cluster-state existing this member joins it",
            cluster.cluster_id,
            own.id,
            own_urls.join(",")
        )));
    }
    Ok(())
}

/// The marker of the member that the cluster lists at one of `own_urls`.
pub(super) fn find_own(own_urls: &[String], answers: &[MembersResponse]) -> Option<Marker> {
    answers.iter().filter_map(|answer| answer.membership.as_ref()).find_map(|membership| {
        let own = membership.members.iter().find(|member| overlap(&member.peer_urls, own_urls))?;
        let others = membership.members.iter().filter(|member| member.id != own.id);
        Some(Marker {
            format_version: FORMAT_VERSION,
            cluster_id: membership.cluster_id,
            member_id: own.id,
            incarnation: random(),
            seeds: others.map(|member| Seed { id: member.id, peer_urls: member.peer_urls.clone() }).collect(),
        })
    })
}

#[cfg(test)]
mod tests {
    use balsa_proto::node::ExitCode;

    use super::*;

    fn url(name: &str) -> Vec<String> {
        vec![format!("http://{name}:2380")]
    }

    fn answer(members: &[(u64, &str, bool)], removed: &[u64]) -> MembersResponse {
        let member = |(id, name, started): &(u64, &str, bool)| Member {
            id: *id,
            peer_urls: url(name),
            started: *started,
            ..Member::default()
        };
        let membership = Membership {
            cluster_id: 7,
            members: members.iter().map(member).collect(),
            removed: removed.to_vec(),
            ..Membership::default()
        };
        MembersResponse { initialized: true, membership: Some(membership), leader: 1, term: 1 }
    }

    #[test]
    fn m4_an_empty_disk_of_a_started_member_is_a_lost_disk() {
        let answers = [answer(&[(1, "a", true), (2, "b", true)], &[])];
        let error = check_not_started(&url("b"), &answers).expect_err("refused");
        assert_eq!(error.reason(), "DiskLost");
        assert!(check_not_started(&url("c"), &answers).is_ok());
    }

    #[test]
    fn a_marker_without_data_is_a_joiner_or_a_lost_disk() {
        let answers = [answer(&[(1, "a", true), (2, "b", true), (3, "c", false)], &[])];
        let marker = |cluster_id, member_id| Marker { cluster_id, member_id, ..Marker::default() };
        let error = check_never_started(&marker(7, 2), &answers).expect_err("refused");
        assert_eq!(error.reason(), "DiskLost");
        for joiner in [marker(7, 3), marker(7, 4), marker(8, 2)] {
            assert!(check_never_started(&joiner, &answers).is_ok());
        }
    }

    #[test]
    fn a_member_that_is_listed_and_never_started_may_join() {
        let answers = [answer(&[(1, "a", true), (2, "b", false)], &[])];
        assert!(check_not_started(&url("b"), &answers).is_ok());
        let marker = find_own(&url("b"), &answers).expect("listed");
        assert_eq!((marker.cluster_id, marker.member_id), (7, 2));
        assert_eq!(marker.seeds.len(), 1);
    }

    #[test]
    fn a_cluster_with_a_leader_is_not_lost() {
        let marker = Marker { cluster_id: 7, member_id: 2, ..Marker::default() };
        let led = answer(&[(1, "a", true)], &[]);
        let leaderless = MembersResponse { leader: 0, ..led.clone() };
        assert!(check_leaderless(&marker, &[]).is_ok());
        assert!(check_leaderless(&marker, &[leaderless.clone(), leaderless.clone()]).is_ok());
        let error = check_leaderless(&marker, &[leaderless, led.clone()]).expect_err("refused");
        assert_eq!((error.exit_code(), error.reason()), (1, "InvalidConfig"));
        assert!(check_leaderless(&Marker { cluster_id: 8, ..marker }, &[led]).is_ok(), "another cluster");
    }

    #[test]
    fn m3_the_disk_of_a_removed_member_is_refused() {
        let marker = Marker { cluster_id: 7, member_id: 2, ..Marker::default() };
        let error = check_not_removed(&marker, &[answer(&[(1, "a", true)], &[2])]).expect_err("refused");
        assert_eq!(error.exit_code(), ExitCode::ExitMemberRemoved as i32);
        assert!(check_not_removed(&Marker { cluster_id: 8, ..marker }, &[answer(&[], &[2])]).is_ok());
    }
}
