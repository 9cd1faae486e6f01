//! etcdserverpb.Auth over gRPC.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::caller::caller;
use super::status::{admit, etcd};
use crate::service::{Member, auth};

/// Presents the use cases of users and roles.
pub struct AuthApi {
    member: Arc<Member>,
    auth: auth::Auth,
}

impl AuthApi {
    /// The presenter of one member.
    pub fn new(member: Arc<Member>) -> Self {
        Self { auth: auth::Auth::new(member.clone()), member }
    }
}

#[tonic::async_trait]
impl pb::auth_server::Auth for AuthApi {
    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        admit(&self.member, request.metadata())?;
        self.auth.authenticate(request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.enable(&caller).await.map(Response::new).map_err(etcd)
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.disable(&caller).await.map(Response::new).map_err(etcd)
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.status(&caller).await.map(Response::new).map_err(etcd)
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.user_add(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.user_get(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.user_list(&caller).await.map(Response::new).map_err(etcd)
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.user_delete(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.user_change_password(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.user_grant_role(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.user_revoke_role(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.role_add(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.role_get(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.role_list(&caller).await.map(Response::new).map_err(etcd)
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.role_delete(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.role_grant_permission(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        admit(&self.member, request.metadata())?;
        let caller = caller(&request);
        self.auth.role_revoke_permission(&caller, request.into_inner()).await.map(Response::new).map_err(etcd)
    }
}
