//! Who may do what: users, roles and the key ranges that roles grant, exactly as etcd decides it.
//!
//! Owns the meaning of the table `auth`, the rules of every change to it, and the permission of every request. It must
//! not know passwords (they are hashed and compared by the service), clocks (tokens expire in the engine) or how a
//! caller proved its name.
//!
//! The state is small and wholly in memory, behind an `Arc` that is replaced as one: [`AuthState`]. Each user carries
//! the merged key ranges of its roles, so that a check is two binary searches. The auth revision grows with each change;
//! an [`Identity`] that was established at an earlier one is refused, and its owner authenticates again.

mod change;
mod permission;
mod ranges;
mod rows;
mod state;

pub(crate) use change::AuthChanges;
pub use change::TokenChange;
pub use permission::{LeaseKeys, LeasesOf, NoLeases};
pub use ranges::KeyRanges;
pub use rows::load;
pub use state::{AuthState, Need, ROOT, User};

/// Who makes a request. Without credentials both fields are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub username: String,
    /// The auth revision at which the name was established; 0 without credentials.
    pub revision: u64,
}

/// Why a request is refused for the sake of auth, or a change of users and roles is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthRefusal {
    /// Enabling needs a user named root.
    #[error("root user does not exist")]
    RootUserNotExist,
    /// Enabling needs the role root granted to it.
    #[error("root user does not have root role")]
    RootRoleNotExist,
    /// A user of that name exists.
    #[error("user name already exists")]
    UserAlreadyExists,
    /// A user without a name, or a request without credentials while auth is enabled.
    #[error("user name is empty")]
    UserEmpty,
    /// No user of that name.
    #[error("user name not found")]
    UserNotFound,
    /// A role of that name exists.
    #[error("role name already exists")]
    RoleAlreadyExists,
    /// No role of that name.
    #[error("role name not found")]
    RoleNotFound,
    /// A role without a name.
    #[error("role name is empty")]
    RoleEmpty,
    /// No such user, or the password is not its.
    #[error("authentication failed, invalid user ID or password")]
    AuthFailed,
    /// A password for a user that has none, or a hash that cannot be decoded.
    #[error("authentication failed, password was given for no password user")]
    NoPasswordUser,
    /// A grant without a permission.
    #[error("permission not given")]
    PermissionNotGiven,
    /// The user may not do it.
    #[error("permission denied")]
    PermissionDenied,
    /// The user does not have the role that is to be taken away.
    #[error("role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission that is to be taken away.
    #[error("permission is not granted to the role")]
    PermissionNotGranted,
    /// Nobody can authenticate while auth is disabled.
    #[error("authentication is not enabled")]
    AuthNotEnabled,
    /// The identity was established before the last change of users and roles.
    #[error("revision of auth store is old")]
    AuthOldRevision,
    /// A change that would leave nobody in charge, or a permission for a range that is none.
    #[error("invalid auth management")]
    InvalidAuthMgmt,
}

#[cfg(test)]
mod tests;
