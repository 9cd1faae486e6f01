//! Calls that are one message there and one back, for all services of which nothing else needs to be known: a path, two
//! messages, and which of the answer's fields are ids.

use std::fmt::Debug;

use balsa_proto::{etcdserverpb as pb, v3electionpb as election, v3lockpb as lock};
use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::raw::RawClient;
use super::reply::{Identity, Reply};
use super::step::brief;

/// What is in every answer, or is not the same on two clusters.
trait Answer: Message + Default + Debug {
    fn header(&mut self) -> Option<pb::ResponseHeader>;

    /// The ids of members in it.
    fn members(&mut self) -> Vec<&mut u64> {
        Vec::new()
    }

    /// What has no order, put in one, once members have their numbers.
    fn sort(&mut self) {}

    /// What is drawn at random, taken out: a token.
    fn secret(&mut self) -> Option<String> {
        None
    }
}

/// A table of calls: name, request, how its member ids are found, response, path.
macro_rules! calls {
    ($($name:ident($request:ty) -> $response:ty, $path:literal;)*) => {
        /// A call.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Call {
            $(
                #[doc = $path]
                $name($request),
            )*
        }

        impl Call {
            /// Its path and its message, with the server's own ids.
            pub fn encode(&self, identity: &Identity) -> (&'static str, Bytes) {
                match self.clone().named(identity) {
                    $(Call::$name(request) => ($path, request.encode_to_vec().into()),)*
                }
            }

            /// What came back; a token in it is the second of the pair.
            pub fn decode(&self, result: Result<Bytes, Status>, identity: &mut Identity) -> (Reply, Option<String>) {
                match self {
                    $(Call::$name(_) => reply::<$response>(result, identity),)*
                }
            }
        }
    };
}

calls! {
    AuthEnable(pb::AuthEnableRequest) -> pb::AuthEnableResponse, "/etcdserverpb.Auth/AuthEnable";
    AuthDisable(pb::AuthDisableRequest) -> pb::AuthDisableResponse, "/etcdserverpb.Auth/AuthDisable";
    AuthStatus(pb::AuthStatusRequest) -> pb::AuthStatusResponse, "/etcdserverpb.Auth/AuthStatus";
    Authenticate(pb::AuthenticateRequest) -> pb::AuthenticateResponse, "/etcdserverpb.Auth/Authenticate";
    UserAdd(pb::AuthUserAddRequest) -> pb::AuthUserAddResponse, "/etcdserverpb.Auth/UserAdd";
    UserGet(pb::AuthUserGetRequest) -> pb::AuthUserGetResponse, "/etcdserverpb.Auth/UserGet";
    UserList(pb::AuthUserListRequest) -> pb::AuthUserListResponse, "/etcdserverpb.Auth/UserList";
    UserDelete(pb::AuthUserDeleteRequest) -> pb::AuthUserDeleteResponse, "/etcdserverpb.Auth/UserDelete";
    UserChangePassword(pb::AuthUserChangePasswordRequest) -> pb::AuthUserChangePasswordResponse,
        "/etcdserverpb.Auth/UserChangePassword";
    UserGrantRole(pb::AuthUserGrantRoleRequest) -> pb::AuthUserGrantRoleResponse, "/etcdserverpb.Auth/UserGrantRole";
    UserRevokeRole(pb::AuthUserRevokeRoleRequest) -> pb::AuthUserRevokeRoleResponse,
        "/etcdserverpb.Auth/UserRevokeRole";
    RoleAdd(pb::AuthRoleAddRequest) -> pb::AuthRoleAddResponse, "/etcdserverpb.Auth/RoleAdd";
    RoleGet(pb::AuthRoleGetRequest) -> pb::AuthRoleGetResponse, "/etcdserverpb.Auth/RoleGet";
    RoleList(pb::AuthRoleListRequest) -> pb::AuthRoleListResponse, "/etcdserverpb.Auth/RoleList";
    RoleDelete(pb::AuthRoleDeleteRequest) -> pb::AuthRoleDeleteResponse, "/etcdserverpb.Auth/RoleDelete";
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest) -> pb::AuthRoleGrantPermissionResponse,
        "/etcdserverpb.Auth/RoleGrantPermission";
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest) -> pb::AuthRoleRevokePermissionResponse,
        "/etcdserverpb.Auth/RoleRevokePermission";
    Alarm(pb::AlarmRequest) -> pb::AlarmResponse, "/etcdserverpb.Maintenance/Alarm";
    Defragment(pb::DefragmentRequest) -> pb::DefragmentResponse, "/etcdserverpb.Maintenance/Defragment";
    MoveLeader(pb::MoveLeaderRequest) -> pb::MoveLeaderResponse, "/etcdserverpb.Maintenance/MoveLeader";
    Downgrade(pb::DowngradeRequest) -> pb::DowngradeResponse, "/etcdserverpb.Maintenance/Downgrade";
    MemberAdd(pb::MemberAddRequest) -> pb::MemberAddResponse, "/etcdserverpb.Cluster/MemberAdd";
    MemberRemove(pb::MemberRemoveRequest) -> pb::MemberRemoveResponse, "/etcdserverpb.Cluster/MemberRemove";
    MemberUpdate(pb::MemberUpdateRequest) -> pb::MemberUpdateResponse, "/etcdserverpb.Cluster/MemberUpdate";
    MemberPromote(pb::MemberPromoteRequest) -> pb::MemberPromoteResponse, "/etcdserverpb.Cluster/MemberPromote";
    Lock(lock::LockRequest) -> lock::LockResponse, "/v3lockpb.Lock/Lock";
    Unlock(lock::UnlockRequest) -> lock::UnlockResponse, "/v3lockpb.Lock/Unlock";
    Campaign(election::CampaignRequest) -> election::CampaignResponse, "/v3electionpb.Election/Campaign";
    Proclaim(election::ProclaimRequest) -> election::ProclaimResponse, "/v3electionpb.Election/Proclaim";
    Leader(election::LeaderRequest) -> election::LeaderResponse, "/v3electionpb.Election/Leader";
    Resign(election::ResignRequest) -> election::ResignResponse, "/v3electionpb.Election/Resign";
}

impl Call {
    /// With the server's own ids in place of the numbers that stand for members.
    fn named(mut self, identity: &Identity) -> Self {
        match &mut self {
            Call::Alarm(request) => request.member_id = identity.member(request.member_id),
            Call::MoveLeader(request) => request.target_id = identity.member(request.target_id),
            Call::MemberRemove(request) => request.id = identity.member(request.id),
            Call::MemberUpdate(request) => request.id = identity.member(request.id),
            Call::MemberPromote(request) => request.id = identity.member(request.id),
            _ => {}
        }
        self
    }

    /// Sends it; a token that comes back is the second of the pair.
    pub async fn send(&self, client: &mut RawClient, identity: &mut Identity) -> (Reply, Option<String>) {
        let (path, body) = self.encode(identity);
        self.decode(client.unary(path, body).await, identity)
    }

    /// The prefix of the keys that a lock or an election waits for, and the key of its own.
    pub fn waits_for(&self) -> Option<(Bytes, Bytes)> {
        let (name, lease) = match self {
            Call::Lock(request) => (&request.name, request.lease),
            Call::Campaign(request) => (&request.name, request.lease),
            _ => return None,
        };
        let queue = queue_of(name);
        let own = [&queue[..], format!("{lease:x}").as_bytes()].concat();
        Some((queue, own.into()))
    }
}

/// The prefix of the keys of all who want a lock or an office.
pub fn queue_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

fn reply<T: Answer>(result: Result<Bytes, Status>, identity: &mut Identity) -> (Reply, Option<String>) {
    let body = match result {
        Ok(body) => body,
        Err(status) => {
            return (Reply::Failed { code: status.code(), message: status.message().to_owned() }, None);
        }
    };
    let Ok(mut answer) = T::decode(body) else {
        return (Reply::Call { header: None, rest: "bytes that do not decode".into() }, None);
    };
    let header = answer.header();
    answer.members().into_iter().for_each(|id| *id = identity.ordinal(*id));
    answer.sort();
    let secret = answer.secret();
    (Reply::Call { header, rest: brief(&format!("{answer:?}")) }, secret)
}

/// Answers in which only the header is to be tidied.
macro_rules! plain {
    ($($response:ty),* $(,)?) => {
        $(
            impl Answer for $response {
                fn header(&mut self) -> Option<pb::ResponseHeader> {
                    self.header.take()
                }
            }
        )*
    };
}

plain! {
    pb::AuthEnableResponse, pb::AuthDisableResponse, pb::AuthStatusResponse, pb::AuthUserAddResponse,
    pb::AuthUserGetResponse, pb::AuthUserListResponse, pb::AuthUserDeleteResponse, pb::AuthUserChangePasswordResponse,
    pb::AuthUserGrantRoleResponse, pb::AuthUserRevokeRoleResponse, pb::AuthRoleAddResponse, pb::AuthRoleGetResponse,
    pb::AuthRoleListResponse, pb::AuthRoleDeleteResponse, pb::AuthRoleGrantPermissionResponse,
    pb::AuthRoleRevokePermissionResponse, pb::DefragmentResponse, pb::MoveLeaderResponse, pb::DowngradeResponse,
    lock::LockResponse, lock::UnlockResponse, election::CampaignResponse, election::ProclaimResponse,
    election::LeaderResponse, election::ResignResponse,
}

impl Answer for pb::AuthenticateResponse {
    fn header(&mut self) -> Option<pb::ResponseHeader> {
        self.header.take()
    }

    fn secret(&mut self) -> Option<String> {
        Some(std::mem::take(&mut self.token)).filter(|token| !token.is_empty())
    }
}

impl Answer for pb::AlarmResponse {
    fn header(&mut self) -> Option<pb::ResponseHeader> {
        self.header.take()
    }

    fn members(&mut self) -> Vec<&mut u64> {
        self.alarms.iter_mut().map(|alarm| &mut alarm.member_id).collect()
    }

    fn sort(&mut self) {
        self.alarms.sort_by_key(|alarm| (alarm.alarm, alarm.member_id));
    }
}

/// Answers that list members.
macro_rules! lists {
    ($($response:ty),*) => {
        $(
            impl Answer for $response {
                fn header(&mut self) -> Option<pb::ResponseHeader> {
                    super::reply::tidy_members(&mut self.members);
                    self.header.take()
                }

                fn members(&mut self) -> Vec<&mut u64> {
                    self.members.iter_mut().map(|member| &mut member.id).collect()
                }
            }
        )*
    };
}

lists!(pb::MemberRemoveResponse, pb::MemberUpdateResponse, pb::MemberPromoteResponse);

impl Answer for pb::MemberAddResponse {
    fn header(&mut self) -> Option<pb::ResponseHeader> {
        super::reply::tidy_members(&mut self.members);
        self.header.take()
    }

    fn members(&mut self) -> Vec<&mut u64> {
        // The new one comes last, so that the others are numbered as in other lists.
        self.members.iter_mut().chain(&mut self.member).map(|member| &mut member.id).collect()
    }
}
