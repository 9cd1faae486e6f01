//! Which path of the gateway stands for which gRPC method: etcd's own list, and what the descriptors say of each method.

use std::collections::HashMap;

use balsa_proto::FILE_DESCRIPTOR_SET;
use prost_reflect::{DescriptorError, DescriptorPool, MessageDescriptor};

/// etcd's paths. Whatever service of these is registered with the router is thereby served.
pub(super) const PATHS: [(&str, &str); 51] = [
    ("/v3/kv/range", "/etcdserverpb.KV/Range"),
    ("/v3/kv/put", "/etcdserverpb.KV/Put"),
    ("/v3/kv/deleterange", "/etcdserverpb.KV/DeleteRange"),
    ("/v3/kv/txn", "/etcdserverpb.KV/Txn"),
    ("/v3/kv/compaction", "/etcdserverpb.KV/Compact"),
    ("/v3/watch", "/etcdserverpb.Watch/Watch"),
    ("/v3/lease/grant", "/etcdserverpb.Lease/LeaseGrant"),
    ("/v3/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/kv/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/lease/keepalive", "/etcdserverpb.Lease/LeaseKeepAlive"),
    ("/v3/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("/v3/kv/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("/v3/cluster/member/add", "/etcdserverpb.Cluster/MemberAdd"),
    ("/v3/cluster/member/remove", "/etcdserverpb.Cluster/MemberRemove"),
    ("/v3/cluster/member/update", "/etcdserverpb.Cluster/MemberUpdate"),
    ("/v3/cluster/member/list", "/etcdserverpb.Cluster/MemberList"),
    ("/v3/cluster/member/promote", "/etcdserverpb.Cluster/MemberPromote"),
    ("/v3/maintenance/alarm", "/etcdserverpb.Maintenance/Alarm"),
    ("/v3/maintenance/status", "/etcdserverpb.Maintenance/Status"),
    ("/v3/maintenance/defragment", "/etcdserverpb.Maintenance/Defragment"),
    ("/v3/maintenance/hash", "/etcdserverpb.Maintenance/Hash"),
    ("/v3/maintenance/hashkv", "/etcdserverpb.Maintenance/HashKV"),
    ("/v3/maintenance/snapshot", "/etcdserverpb.Maintenance/Snapshot"),
    ("/v3/maintenance/transfer-leadership", "/etcdserverpb.Maintenance/MoveLeader"),
    ("/v3/maintenance/downgrade", "/etcdserverpb.Maintenance/Downgrade"),
    ("/v3/auth/enable", "/etcdserverpb.Auth/AuthEnable"),
    ("/v3/auth/disable", "/etcdserverpb.Auth/AuthDisable"),
    ("/v3/auth/status", "/etcdserverpb.Auth/AuthStatus"),
    ("/v3/auth/authenticate", "/etcdserverpb.Auth/Authenticate"),
    ("/v3/auth/user/add", "/etcdserverpb.Auth/UserAdd"),
    ("/v3/auth/user/get", "/etcdserverpb.Auth/UserGet"),
    ("/v3/auth/user/list", "/etcdserverpb.Auth/UserList"),
    ("/v3/auth/user/delete", "/etcdserverpb.Auth/UserDelete"),
    ("/v3/auth/user/changepw", "/etcdserverpb.Auth/UserChangePassword"),
    ("/v3/auth/user/grant", "/etcdserverpb.Auth/UserGrantRole"),
    ("/v3/auth/user/revoke", "/etcdserverpb.Auth/UserRevokeRole"),
    ("/v3/auth/role/add", "/etcdserverpb.Auth/RoleAdd"),
    ("/v3/auth/role/get", "/etcdserverpb.Auth/RoleGet"),
    ("/v3/auth/role/list", "/etcdserverpb.Auth/RoleList"),
    ("/v3/auth/role/delete", "/etcdserverpb.Auth/RoleDelete"),
    ("/v3/auth/role/grant", "/etcdserverpb.Auth/RoleGrantPermission"),
    ("/v3/auth/role/revoke", "/etcdserverpb.Auth/RoleRevokePermission"),
    ("/v3/lock/lock", "/v3lockpb.Lock/Lock"),
    ("/v3/lock/unlock", "/v3lockpb.Lock/Unlock"),
    ("/v3/election/campaign", "/v3electionpb.Election/Campaign"),
    ("/v3/election/proclaim", "/v3electionpb.Election/Proclaim"),
    ("/v3/election/leader", "/v3electionpb.Election/Leader"),
    ("/v3/election/observe", "/v3electionpb.Election/Observe"),
    ("/v3/election/resign", "/v3electionpb.Election/Resign"),
];

/// One method behind the gateway.
#[derive(Debug, Clone)]
pub(super) struct Method {
    /// `/package.Service/Method`.
    pub(super) path: &'static str,
    /// What it takes.
    pub(super) input: MessageDescriptor,
    /// What it answers.
    pub(super) output: MessageDescriptor,
    /// Whether it takes a stream.
    pub(super) takes_stream: bool,
    /// Whether it answers a stream.
    pub(super) answers_stream: bool,
}

/// The methods by their paths.
///
/// # Errors
/// The contract's descriptors cannot be read.
pub(super) fn methods() -> Result<HashMap<&'static str, Method>, DescriptorError> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET)?;
    let mut methods = HashMap::new();
    for (path, grpc) in PATHS {
        let found = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).find(|method| {
            grpc.strip_prefix('/')
                .and_then(|name| name.split_once('/'))
                .is_some_and(|(service, name)| method.parent_service().full_name() == service && method.name() == name)
        });
        if let Some(method) = found {
            let (takes_stream, answers_stream) = (method.is_client_streaming(), method.is_server_streaming());
            let (input, output) = (method.input(), method.output());
            methods.insert(path, Method { path: grpc, input, output, takes_stream, answers_stream });
        }
    }
    Ok(methods)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_method_of_etcds_services_has_a_path() {
        let methods = methods().unwrap();
        assert_eq!(methods.len(), PATHS.len(), "every path names a method of the contract");
        let served: BTreeSet<_> = methods.values().map(|method| method.path.to_owned()).collect();
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let all = pool.services().filter(|service| !service.full_name().starts_with("balsa."));
        let all = all.flat_map(|service| service.methods().collect::<Vec<_>>());
        let all = all.map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()));
        let missing: Vec<_> = all.filter(|path| !served.contains(path)).collect();
        assert_eq!(missing, ["/etcdserverpb.KV/RangeStream"], "etcd has no path for it either");
    }

    #[test]
    fn the_contract_has_only_kinds_that_the_gateway_writes() {
        use prost_reflect::Kind;
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let messages = pool.all_messages().filter(|message| !message.full_name().starts_with("balsa."));
        for field in messages.flat_map(|message| message.fields().collect::<Vec<_>>()) {
            let known = matches!(
                field.kind(),
                Kind::Bool
                    | Kind::Int32
                    | Kind::Int64
                    | Kind::Uint32
                    | Kind::Uint64
                    | Kind::String
                    | Kind::Bytes
                    | Kind::Enum(_)
                    | Kind::Message(_)
            );
            assert!(known && !field.is_map() && !field.is_group(), "{}", field.full_name());
        }
    }
}
