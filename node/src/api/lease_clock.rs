//! The leader's clock of leases on the peer port: both ends of balsa.peer.v1.Leases.

use std::sync::Arc;
use std::time::Duration;

use balsa_proto::{etcdserverpb as pb, peer};
use parking_lot::Mutex;
use peer::leases_client::LeasesClient;
use peer::leases_server::Leases;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::forward::{answer_bound, connect, in_time};
use super::status::etcd;
use crate::domain::lease::Renewal;
use crate::engine::Handle;
use crate::service::Member;
use crate::service::failure::Error;
use crate::service::forward::Answer;
use crate::service::keep_alive::MAX_IDS;
use crate::service::lease::{Clock, time_to_live_here};
use crate::transport::tonic::Dialer;

/// Presents this member's clock to the others.
pub struct LeaseClockApi {
    member: Arc<Member>,
}

impl LeaseClockApi {
    /// The presenter of one member.
    pub fn new(member: Arc<Member>) -> Self {
        Self { member }
    }

    /// A replaced member keeps its name in the network: what is meant for its predecessor is refused.
    fn addressed(&self, cluster_id: u64, to: u64) -> Result<Handle, Status> {
        let handle = self.member.handle().map_err(|failure| etcd(failure.into()))?;
        if (cluster_id, to) != (handle.cluster_id(), handle.member_id()) {
            return Err(Status::failed_precondition(format!("meant for member {to:x} of cluster {cluster_id:x}")));
        }
        Ok(handle)
    }
}

#[tonic::async_trait]
impl Leases for LeaseClockApi {
    async fn renew(
        &self,
        request: Request<peer::RenewLeasesRequest>,
    ) -> Result<Response<peer::RenewLeasesResponse>, Status> {
        let peer::RenewLeasesRequest { cluster_id, to, ids } = request.into_inner();
        let handle = self.addressed(cluster_id, to)?;
        if ids.len() > MAX_IDS {
            return Err(Status::resource_exhausted("too many leases in one request"));
        }
        let renewals = handle.renew_leases(&ids).await.map_err(|failure| etcd(failure.into()))?;
        let renewals = renewals.into_iter().map(to_wire).collect();
        Ok(Response::new(peer::RenewLeasesResponse { renewals }))
    }

    async fn time_to_live(
        &self,
        request: Request<peer::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let peer::LeaseTimeToLiveRequest { cluster_id, to, request } = request.into_inner();
        let handle = self.addressed(cluster_id, to)?;
        let request = request.ok_or_else(|| Status::invalid_argument("an empty request"))?;
        time_to_live_here(&handle, request).await.map(Response::new).map_err(etcd)
    }
}

fn to_wire(renewal: Renewal) -> peer::Renewal {
    use peer::RenewalState::{RenewalExpiring, RenewalNotFound, RenewalRenewed};
    let (state, ttl) = match renewal {
        Renewal::Renewed { ttl } => (RenewalRenewed, ttl),
        Renewal::NotFound => (RenewalNotFound, 0),
        Renewal::Expiring | Renewal::Checkpointed => (RenewalExpiring, 0),
    };
    peer::Renewal { state: state.into(), ttl }
}

/// A state of a later version can only mean that the answer is not certain yet.
fn from_wire(renewal: peer::Renewal) -> Renewal {
    match renewal.state() {
        peer::RenewalState::RenewalRenewed => Renewal::Renewed { ttl: renewal.ttl },
        peer::RenewalState::RenewalNotFound => Renewal::NotFound,
        peer::RenewalState::RenewalExpiring | peer::RenewalState::RenewalUnspecified => Renewal::Expiring,
    }
}

/// Reaches the leader's clock over gRPC. Renewals are many, so the connection is kept until the leader is another or
/// does not answer.
#[derive(Debug)]
pub struct GrpcClock {
    dialer: Dialer,
    bound: Duration,
    kept: Arc<Mutex<Option<Kept>>>,
}

/// The URLs of a leader and the connection to it.
type Kept = (Vec<String>, Channel);

impl GrpcClock {
    /// Reaches it by `dialer`, and waits for its answers as long as [`answer_bound`] says.
    pub fn new(dialer: Dialer, election_timeout: Duration) -> Self {
        Self { dialer, bound: answer_bound(election_timeout), kept: Arc::default() }
    }

    fn call<T, F>(&self, urls: Vec<String>, ask: impl FnOnce(Channel) -> F + Send + 'static) -> Answer<T>
    where
        T: 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let (dialer, bound, kept) = (self.dialer.clone(), self.bound, self.kept.clone());
        Box::pin(async move {
            let known = kept.lock().as_ref().filter(|(known, _)| *known == urls).map(|(_, channel)| channel.clone());
            let channel = match known {
                Some(channel) => channel,
                None => {
                    let channel = connect(&dialer, &urls).await?;
                    *kept.lock() = Some((urls, channel.clone()));
                    channel
                }
            };
            let answer = in_time(bound, ask(channel)).await;
            if answer.is_err() {
                *kept.lock() = None;
            }
            answer
        })
    }
}

impl Clock for GrpcClock {
    fn renew(&self, urls: Vec<String>, request: peer::RenewLeasesRequest) -> Answer<Vec<Renewal>> {
        let asked = request.ids.len();
        let answer = self.call(urls, move |channel| async move { LeasesClient::new(channel).renew(request).await });
        Box::pin(async move {
            let renewals: Vec<Renewal> = answer.await?.renewals.into_iter().map(from_wire).collect();
            if renewals.len() != asked {
                return Err(Error::Internal(format!("{asked} leases had {} renewals", renewals.len())));
            }
            Ok(renewals)
        })
    }

    fn time_to_live(
        &self,
        urls: Vec<String>,
        request: peer::LeaseTimeToLiveRequest,
    ) -> Answer<pb::LeaseTimeToLiveResponse> {
        self.call(urls, move |channel| async move { LeasesClient::new(channel).time_to_live(request).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_survive_the_wire() {
        for renewal in [Renewal::Renewed { ttl: 60 }, Renewal::NotFound, Renewal::Expiring] {
            assert_eq!(from_wire(to_wire(renewal)), renewal);
        }
        assert_eq!(from_wire(to_wire(Renewal::Checkpointed)), Renewal::Expiring, "ask again");
        assert_eq!(from_wire(peer::Renewal { state: 99, ttl: 7 }), Renewal::Expiring);
    }
}
