//! etcd's Auth service as use cases. Changes are commands, and who may make them is decided when they are applied; reads
//! are answered from this member's state once it is confirmed to be current. A password is hashed before it goes
//! anywhere, and compared before anything is proposed.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::log;

use super::caller::{Caller, refused};
use super::failure::Error;
use super::member::{Member, header};
use super::tokens::{Tokens, random_prefix};
use crate::domain::auth::{AuthRefusal, AuthState, Identity, User};
use crate::domain::command::{Command, Outcome};
use crate::domain::refusal::Refusal;
use crate::engine::{Failure, Handle};

/// How often a password is compared again because users or roles changed meanwhile.
const ATTEMPTS: usize = 8;

type Header = Option<pb::ResponseHeader>;

/// etcd's Auth service as use cases.
#[derive(Clone)]
pub struct Auth {
    member: Arc<Member>,
}

/// Authentication.
impl Auth {
    /// Use cases of one member.
    pub fn new(member: Arc<Member>) -> Self {
        Self { member }
    }

    /// Gives a user a token. Unknown users take as long as known ones.
    ///
    /// # Errors
    /// `AuthNotEnabled`, `AuthFailed`, `NoPasswordUser`; `VerifyOnly`; those of a write.
    pub async fn authenticate(&self, request: pb::AuthenticateRequest) -> Result<pb::AuthenticateResponse, Error> {
        let handle = self.member.voter()?;
        handle.read_index().await?;
        for _ in 0..ATTEMPTS {
            let auth = handle.auth();
            self.check_password(&auth, &request).await?;
            match self.token(&handle, &auth, &request.name).await {
                Err(Error::Failed(Failure::Refused(Refusal::Auth(AuthRefusal::AuthOldRevision)))) => {}
                answer => return answer,
            }
        }
        Err(refused(AuthRefusal::AuthOldRevision))
    }

    async fn check_password(&self, auth: &AuthState, request: &pb::AuthenticateRequest) -> Result<(), Error> {
        if !auth.is_enabled() {
            return Err(refused(AuthRefusal::AuthNotEnabled));
        }
        let user = auth.user(&request.name);
        let hash = user.filter(|user| !user.has_no_password()).map(|user| user.password_hash().to_vec());
        let matches = self.member.passwords().matches(request.password.clone(), hash).await?;
        match user {
            Some(user) if user.has_no_password() => Err(refused(AuthRefusal::NoPasswordUser)),
            Some(_) if matches => Ok(()),
            _ => {
                tracing::info!(user = request.name, "a wrong user or password was given");
                Err(refused(AuthRefusal::AuthFailed))
            }
        }
    }

    /// A signed token needs no log: it says itself at which revision its user was established.
    async fn token(&self, handle: &Handle, auth: &AuthState, name: &str) -> Result<pb::AuthenticateResponse, Error> {
        let token_prefix = match &self.member.settings().auth.tokens {
            Tokens::Jwt(keys) => {
                let token = keys.sign(name, auth.revision())?;
                let status = handle.status();
                return Ok(pb::AuthenticateResponse { header: Some(header(&status, status.revision)), token });
            }
            Tokens::None => return Err(refused(AuthRefusal::AuthFailed)),
            Tokens::Simple => random_prefix()?,
        };
        let request = log::Authenticate { name: name.to_owned(), token_prefix, checked_revision: auth.revision() };
        let (header, token) = propose(handle, Command::Authenticate(request), None).await?;
        Ok(pb::AuthenticateResponse { header, token })
    }

    /// Whether auth is enabled. Needs no credentials, because clients ask it to know whether they need some.
    ///
    /// # Errors
    /// `InvalidAuthToken`; those of a read.
    pub async fn status(&self, caller: &Caller) -> Result<pb::AuthStatusResponse, Error> {
        let (handle, _) = self.reader(caller).await?;
        let (auth, status) = (handle.auth(), handle.status());
        let header = Some(header(&status, status.revision));
        Ok(pb::AuthStatusResponse { header, enabled: auth.is_enabled(), auth_revision: auth.revision() })
    }

    /// Makes permissions count.
    ///
    /// # Errors
    /// `RootUserNotExist`, `RootRoleNotExist`; those of a change.
    pub async fn enable(&self, caller: &Caller) -> Result<pb::AuthEnableResponse, Error> {
        let header = self.change(caller, Command::AuthEnable(pb::AuthEnableRequest {})).await?;
        Ok(pb::AuthEnableResponse { header })
    }

    /// Lets everybody do everything again.
    ///
    /// # Errors
    /// Those of a change.
    pub async fn disable(&self, caller: &Caller) -> Result<pb::AuthDisableResponse, Error> {
        let header = self.change(caller, Command::AuthDisable(pb::AuthDisableRequest {})).await?;
        Ok(pb::AuthDisableResponse { header })
    }
}

/// Users.
impl Auth {
    /// Adds a user. A hash that the client sends is not taken, as in etcd: it could be of any strength.
    ///
    /// # Errors
    /// `UserEmpty`, `UserAlreadyExists`, `PasswordTooLong`; those of a change.
    pub async fn user_add(
        &self,
        caller: &Caller,
        mut request: pb::AuthUserAddRequest,
    ) -> Result<pb::AuthUserAddResponse, Error> {
        if !request.options.is_some_and(|options| options.no_password) {
            request.hashed_password = self.hash(caller, std::mem::take(&mut request.password)).await?;
        }
        request.password.clear();
        let header = self.change(caller, Command::UserAdd(request)).await?;
        Ok(pb::AuthUserAddResponse { header })
    }

    /// The roles of a user; for root, and for the user itself.
    ///
    /// # Errors
    /// `UserNotFound`; `PermissionDenied`; those of a read.
    pub async fn user_get(
        &self,
        caller: &Caller,
        request: pb::AuthUserGetRequest,
    ) -> Result<pb::AuthUserGetResponse, Error> {
        let (handle, who) = self.reader(caller).await?;
        let auth = handle.auth();
        match auth.check_admin(&who) {
            Err(refusal) if request.name != who.username => return Err(refused(refusal)),
            _ => {}
        }
        let user = auth.user(&request.name).ok_or(refused(AuthRefusal::UserNotFound))?;
        Ok(pb::AuthUserGetResponse { header: now(&handle), roles: user.roles().to_vec() })
    }

    /// The names of all users.
    ///
    /// # Errors
    /// Those of a read, for root only.
    pub async fn user_list(&self, caller: &Caller) -> Result<pb::AuthUserListResponse, Error> {
        let (handle, who) = self.reader(caller).await?;
        let auth = handle.auth();
        auth.check_admin(&who).map_err(refused)?;
        Ok(pb::AuthUserListResponse { header: now(&handle), users: auth.user_names().map(str::to_owned).collect() })
    }

    /// Deletes a user.
    ///
    /// # Errors
    /// `UserNotFound`; `InvalidAuthMgmt` for root while auth is enabled; those of a change.
    pub async fn user_delete(
        &self,
        caller: &Caller,
        request: pb::AuthUserDeleteRequest,
    ) -> Result<pb::AuthUserDeleteResponse, Error> {
        let header = self.change(caller, Command::UserDelete(request)).await?;
        Ok(pb::AuthUserDeleteResponse { header })
    }

    /// Gives a user another password. Without one the hash that the client sends is taken.
    ///
    /// # Errors
    /// `UserNotFound`, `NoPasswordUser`, `PasswordTooLong`; those of a change.
    pub async fn user_change_password(
        &self,
        caller: &Caller,
        mut request: pb::AuthUserChangePasswordRequest,
    ) -> Result<pb::AuthUserChangePasswordResponse, Error> {
        if !request.password.is_empty() {
            request.hashed_password = self.hash(caller, std::mem::take(&mut request.password)).await?;
        }
        let header = self.change(caller, Command::UserChangePassword(request)).await?;
        Ok(pb::AuthUserChangePasswordResponse { header })
    }

    /// Gives a user a role.
    ///
    /// # Errors
    /// `UserNotFound`, `RoleNotFound`; those of a change.
    pub async fn user_grant_role(
        &self,
        caller: &Caller,
        request: pb::AuthUserGrantRoleRequest,
    ) -> Result<pb::AuthUserGrantRoleResponse, Error> {
        let header = self.change(caller, Command::UserGrantRole(request)).await?;
        Ok(pb::AuthUserGrantRoleResponse { header })
    }

    /// Takes a role away from a user.
    ///
    /// # Errors
    /// `UserNotFound`, `RoleNotGranted`; `InvalidAuthMgmt` for root's own while auth is enabled; those of a change.
    pub async fn user_revoke_role(
        &self,
        caller: &Caller,
        request: pb::AuthUserRevokeRoleRequest,
    ) -> Result<pb::AuthUserRevokeRoleResponse, Error> {
        let header = self.change(caller, Command::UserRevokeRole(request)).await?;
        Ok(pb::AuthUserRevokeRoleResponse { header })
    }
}

/// Roles.
impl Auth {
    /// Adds a role.
    ///
    /// # Errors
    /// `RoleEmpty`, `RoleAlreadyExists`; those of a change.
    pub async fn role_add(
        &self,
        caller: &Caller,
        request: pb::AuthRoleAddRequest,
    ) -> Result<pb::AuthRoleAddResponse, Error> {
        let header = self.change(caller, Command::RoleAdd(request)).await?;
        Ok(pb::AuthRoleAddResponse { header })
    }

    /// The permissions of a role; for root, and for whoever has the role.
    ///
    /// # Errors
    /// `RoleNotFound`; `PermissionDenied`; those of a read.
    pub async fn role_get(
        &self,
        caller: &Caller,
        request: pb::AuthRoleGetRequest,
    ) -> Result<pb::AuthRoleGetResponse, Error> {
        let (handle, who) = self.reader(caller).await?;
        let auth = handle.auth();
        let has_role = |user: &User| user.has_role(&request.role);
        match auth.check_admin(&who) {
            Err(refusal) if !auth.user(&who.username).is_some_and(has_role) => return Err(refused(refusal)),
            _ => {}
        }
        let perm = auth.permissions(&request.role).map_err(refused)?;
        Ok(pb::AuthRoleGetResponse { header: now(&handle), perm })
    }

    /// The names of all roles.
    ///
    /// # Errors
    /// Those of a read, for root only.
    pub async fn role_list(&self, caller: &Caller) -> Result<pb::AuthRoleListResponse, Error> {
        let (handle, who) = self.reader(caller).await?;
        let auth = handle.auth();
        auth.check_admin(&who).map_err(refused)?;
        Ok(pb::AuthRoleListResponse { header: now(&handle), roles: auth.role_names().map(str::to_owned).collect() })
    }

    /// Deletes a role, and takes it away from all who have it.
    ///
    /// # Errors
    /// `RoleNotFound`; `InvalidAuthMgmt` for root while auth is enabled; those of a change.
    pub async fn role_delete(
        &self,
        caller: &Caller,
        request: pb::AuthRoleDeleteRequest,
    ) -> Result<pb::AuthRoleDeleteResponse, Error> {
        let header = self.change(caller, Command::RoleDelete(request)).await?;
        Ok(pb::AuthRoleDeleteResponse { header })
    }

    /// Gives a role a permission.
    ///
    /// # Errors
    /// `PermissionNotGiven`, `InvalidAuthMgmt` for a range that is none, `RoleNotFound`; those of a change.
    pub async fn role_grant_permission(
        &self,
        caller: &Caller,
        request: pb::AuthRoleGrantPermissionRequest,
    ) -> Result<pb::AuthRoleGrantPermissionResponse, Error> {
        let header = self.change(caller, Command::RoleGrantPermission(request)).await?;
        Ok(pb::AuthRoleGrantPermissionResponse { header })
    }

    /// Takes a permission away from a role.
    ///
    /// # Errors
    /// `RoleNotFound`, `PermissionNotGranted`; those of a change.
    pub async fn role_revoke_permission(
        &self,
        caller: &Caller,
        request: pb::AuthRoleRevokePermissionRequest,
    ) -> Result<pb::AuthRoleRevokePermissionResponse, Error> {
        let header = self.change(caller, Command::RoleRevokePermission(request)).await?;
        Ok(pb::AuthRoleRevokePermissionResponse { header })
    }

    /// A handle whose state is current, and who calls.
    async fn reader(&self, caller: &Caller) -> Result<(Handle, Identity), Error> {
        let handle = self.member.voter()?;
        handle.read_index_as_command().await?;
        let who = self.member.identify(&handle, caller).await?;
        Ok((handle, who.unwrap_or_default()))
    }

    async fn change(&self, caller: &Caller, command: Command) -> Result<Header, Error> {
        let handle = self.member.voter()?;
        let who = self.member.identify(&handle, caller).await?;
        propose(&handle, command, who).await.map(|(header, _)| header)
    }

    /// Hashes for root only, who is asked for first: a hash is dear, and nobody else may have one made.
    async fn hash(&self, caller: &Caller, password: String) -> Result<String, Error> {
        let (handle, who) = self.reader(caller).await?;
        handle.auth().check_admin(&who).map_err(refused)?;
        self.member.passwords().hash(password).await
    }
}

fn now(handle: &Handle) -> Header {
    let status = handle.status();
    Some(header(&status, status.revision))
}

async fn propose(handle: &Handle, command: Command, who: Option<Identity>) -> Result<(Header, String), Error> {
    match handle.propose(command, who).await? {
        Outcome::Auth { revision, token } => Ok((Some(header(&handle.status(), revision)), token)),
        other => Err(Error::Internal(format!("the outcome is not of the command's kind: {other:?}"))),
    }
}
