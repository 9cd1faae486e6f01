//! Users and roles, and the rules of changing them.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_proto::authpb::{Permission, Role, UserAddOptions, permission};
use balsa_proto::{authpb, etcdserverpb as pb};
use base64::Engine as _;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

use super::{AuthRefusal, Identity, KeyRanges};

/// The name of the user and of the role that may do everything.
pub const ROOT: &str = "root";

/// A user with what its roles grant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct User {
    pub(super) record: authpb::User,
    reads: KeyRanges,
    writes: KeyRanges,
}

impl User {
    /// The hash of its password; empty when it has none.
    pub fn password_hash(&self) -> &[u8] {
        &self.record.password
    }

    /// Whether it was made to authenticate by certificate only.
    pub fn has_no_password(&self) -> bool {
        self.record.options.as_ref().is_some_and(|options| options.no_password)
    }

    /// Its roles, sorted.
    pub fn roles(&self) -> &[String] {
        &self.record.roles
    }

    /// Whether it may do everything.
    pub fn is_root(&self) -> bool {
        self.has_role(ROOT)
    }

    /// Whether a role was granted to it.
    pub fn has_role(&self, role: &str) -> bool {
        self.record.roles.iter().any(|own| own == role)
    }

    fn of(record: authpb::User, roles: &BTreeMap<String, Arc<Role>>) -> Arc<Self> {
        use permission::Type::{Read, Readwrite, Write};
        let granted = || record.roles.iter().filter_map(|role| roles.get(role)).flat_map(|role| &role.key_permission);
        // A type that nobody knows grants nothing.
        let of = |kind| {
            let grants = move |p: &&Permission| {
                permission::Type::try_from(p.perm_type).is_ok_and(|t| t == kind || t == Readwrite)
            };
            KeyRanges::of(granted().filter(grants))
        };
        let (reads, writes) = (of(Read), of(Write));
        Arc::new(Self { record, reads, writes })
    }
}

/// What an operation on keys needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Ranges, compares, watches and previous pairs.
    Read,
    /// Puts and deletes.
    Write,
}

/// Users, roles, and whether they matter. A value: changes make a new one.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthState {
    pub(super) enabled: bool,
    pub(super) revision: u64,
    pub(super) users: BTreeMap<String, Arc<User>>,
    pub(super) roles: BTreeMap<String, Arc<Role>>,
}

impl Default for AuthState {
    /// As etcd's store is when it was never touched: disabled, at revision 1.
    fn default() -> Self {
        Self { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

/// What a change did, for the rows and the tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    Meta,
    User(String),
    /// Also its tokens are void.
    UserAndTokens(String),
    Role(String),
    RoleAndUsers(String, Vec<String>),
}

type Change = Result<Changed, AuthRefusal>;

/// Reading of it.
impl AuthState {
    pub(super) fn restored(meta: (bool, u64), users: Vec<authpb::User>, roles: Vec<Role>) -> Self {
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let roles: BTreeMap<_, _> = roles.into_iter().map(|role| (name(&role.name), Arc::new(role))).collect();
        let users = users.into_iter().map(|user| (name(&user.name), User::of(user, &roles))).collect();
        Self { enabled: meta.0, revision: meta.1, users, roles }
    }

    /// Whether permissions are checked at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The auth revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A user.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|user| &**user)
    }

    /// The names of all users, sorted.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The names of all roles, sorted.
    pub fn role_names(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// The permissions of a role. The role root has one that covers every key, whatever was granted to it.
    ///
    /// # Errors
    /// `RoleNotFound`.
    pub fn permissions(&self, role: &str) -> Result<Vec<Permission>, AuthRefusal> {
        let found = self.roles.get(role).ok_or(AuthRefusal::RoleNotFound)?;
        if role == ROOT {
            let perm_type = permission::Type::Readwrite.into();
            return Ok(vec![Permission { perm_type, key: "".into(), range_end: "\0".into() }]);
        }
        Ok(found.key_permission.clone())
    }

    /// Whether the caller may do what only root may.
    ///
    /// # Errors
    /// `UserEmpty` without credentials, `UserNotFound`, `PermissionDenied`.
    pub fn check_admin(&self, who: &Identity) -> Result<(), AuthRefusal> {
        if !self.enabled {
            return Ok(());
        }
        if who.username.is_empty() {
            return Err(AuthRefusal::UserEmpty);
        }
        let user = self.user(&who.username).ok_or(AuthRefusal::UserNotFound)?;
        if user.is_root() { Ok(()) } else { Err(AuthRefusal::PermissionDenied) }
    }

    /// Whether the caller may read, or write, all keys that `key` and `range_end` name.
    ///
    /// # Errors
    /// `UserEmpty` without credentials, `AuthOldRevision`, `PermissionDenied`.
    pub fn check_keys(&self, who: &Identity, need: Need, key: &[u8], range_end: &[u8]) -> Result<(), AuthRefusal> {
        if !self.enabled {
            return Ok(());
        }
        if who.revision == 0 {
            return Err(AuthRefusal::UserEmpty);
        }
        if who.revision < self.revision {
            return Err(AuthRefusal::AuthOldRevision);
        }
        let user = self.user(&who.username).ok_or(AuthRefusal::PermissionDenied)?;
        let ranges = match need {
            Need::Read => &user.reads,
            Need::Write => &user.writes,
        };
        if user.is_root() || ranges.covers(key, range_end) { Ok(()) } else { Err(AuthRefusal::PermissionDenied) }
    }
}

/// Changing it. What is refused has changed nothing.
impl AuthState {
    pub(super) fn enable(&mut self) -> Change {
        if self.enabled {
            return Ok(Changed::Nothing);
        }
        let root = self.user(ROOT).ok_or(AuthRefusal::RootUserNotExist)?;
        if !root.is_root() {
            return Err(AuthRefusal::RootRoleNotExist);
        }
        self.enabled = true;
        Ok(Changed::Meta)
    }

    pub(super) fn disable(&mut self) -> Changed {
        if !self.enabled {
            return Changed::Nothing;
        }
        self.enabled = false;
        self.revision += 1;
        Changed::Meta
    }

    pub(super) fn add_user(&mut self, request: &pb::AuthUserAddRequest) -> Change {
        if request.name.is_empty() {
            return Err(AuthRefusal::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(AuthRefusal::UserAlreadyExists);
        }
        let options = request.options.unwrap_or(UserAddOptions { no_password: false });
        let password = if options.no_password { Vec::new() } else { decode_hash(&request.hashed_password)? };
        let name = request.name.clone();
        let record = authpb::User {
            name: name.clone().into(),
            password: password.into(),
            roles: Vec::new(),
            options: Some(options),
        };
        self.put_user(record);
        Ok(Changed::User(name))
    }

    pub(super) fn delete_user(&mut self, name: &str) -> Change {
        if self.enabled && name == ROOT {
            return Err(AuthRefusal::InvalidAuthMgmt);
        }
        self.users.remove(name).ok_or(AuthRefusal::UserNotFound)?;
        self.revision += 1;
        Ok(Changed::UserAndTokens(name.to_owned()))
    }

    pub(super) fn change_password(&mut self, request: &pb::AuthUserChangePasswordRequest) -> Change {
        let user = self.users.get(&request.name).ok_or(AuthRefusal::UserNotFound)?;
        let password = if user.has_no_password() { Vec::new() } else { decode_hash(&request.hashed_password)? };
        self.put_user(authpb::User { password: password.into(), ..user.record.clone() });
        Ok(Changed::UserAndTokens(request.name.clone()))
    }

    pub(super) fn grant_role(&mut self, request: &pb::AuthUserGrantRoleRequest) -> Change {
        let user = self.users.get(&request.user).ok_or(AuthRefusal::UserNotFound)?;
        if request.role != ROOT && !self.roles.contains_key(&request.role) {
            return Err(AuthRefusal::RoleNotFound);
        }
        if user.has_role(&request.role) {
            return Ok(Changed::Nothing);
        }
        let mut record = user.record.clone();
        record.roles.push(request.role.clone());
        record.roles.sort_unstable();
        self.put_user(record);
        Ok(Changed::User(request.user.clone()))
    }

    pub(super) fn revoke_role(&mut self, request: &pb::AuthUserRevokeRoleRequest) -> Change {
        if self.enabled && request.name == ROOT && request.role == ROOT {
            return Err(AuthRefusal::InvalidAuthMgmt);
        }
        let user = self.users.get(&request.name).ok_or(AuthRefusal::UserNotFound)?;
        if !user.has_role(&request.role) {
            return Err(AuthRefusal::RoleNotGranted);
        }
        let mut record = user.record.clone();
        record.roles.retain(|role| *role != request.role);
        self.put_user(record);
        Ok(Changed::User(request.name.clone()))
    }

    pub(super) fn add_role(&mut self, name: &str) -> Change {
        if name.is_empty() {
            return Err(AuthRefusal::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(AuthRefusal::RoleAlreadyExists);
        }
        self.put_role(Role { name: name.to_owned().into(), key_permission: Vec::new() });
        Ok(Changed::Role(name.to_owned()))
    }

    pub(super) fn delete_role(&mut self, name: &str) -> Change {
        if self.enabled && name == ROOT {
            return Err(AuthRefusal::InvalidAuthMgmt);
        }
        self.roles.remove(name).ok_or(AuthRefusal::RoleNotFound)?;
        let holders: Vec<String> = self.holders(name);
        for holder in &holders {
            let mut record = self.users[holder].record.clone();
            record.roles.retain(|role| role != name);
            self.users.insert(holder.clone(), User::of(record, &self.roles));
        }
        self.revision += 1;
        Ok(Changed::RoleAndUsers(name.to_owned(), holders))
    }

    /// A permission for a range that is there already changes its type. The order is by key; of equal keys the later
    /// grant comes after the earlier ones.
    pub(super) fn grant_permission(&mut self, request: &pb::AuthRoleGrantPermissionRequest) -> Change {
        let given = request.perm.as_ref().ok_or(AuthRefusal::PermissionNotGiven)?;
        if !is_range(&given.key, &given.range_end) {
            return Err(AuthRefusal::InvalidAuthMgmt);
        }
        let mut role = Role::clone(self.roles.get(&request.name).ok_or(AuthRefusal::RoleNotFound)?);
        let permissions = &mut role.key_permission;
        let at = permissions.partition_point(|own| own.key < given.key);
        match permissions.get_mut(at) {
            // As etcd: only the first of those with this key is looked at.
            Some(own) if own.key == given.key && own.range_end == given.range_end => own.perm_type = given.perm_type,
            _ => {
                permissions.push(given.clone());
                permissions.sort_by(|a, b| a.key.cmp(&b.key));
            }
        }
        self.put_role(role);
        Ok(Changed::Role(request.name.clone()))
    }

    pub(super) fn revoke_permission(&mut self, request: &pb::AuthRoleRevokePermissionRequest) -> Change {
        let mut role = Role::clone(self.roles.get(&request.role).ok_or(AuthRefusal::RoleNotFound)?);
        let before = role.key_permission.len();
        role.key_permission.retain(|own| own.key != request.key || own.range_end != request.range_end);
        if role.key_permission.len() == before {
            return Err(AuthRefusal::PermissionNotGranted);
        }
        self.put_role(role);
        Ok(Changed::Role(request.role.clone()))
    }

    fn put_user(&mut self, record: authpb::User) {
        let name = String::from_utf8_lossy(&record.name).into_owned();
        self.users.insert(name, User::of(record, &self.roles));
        self.revision += 1;
    }

    fn put_role(&mut self, role: Role) {
        let name = String::from_utf8_lossy(&role.name).into_owned();
        self.roles.insert(name.clone(), Arc::new(role));
        for holder in self.holders(&name) {
            let record = self.users[&holder].record.clone();
            self.users.insert(holder, User::of(record, &self.roles));
        }
        self.revision += 1;
    }

    fn holders(&self, role: &str) -> Vec<String> {
        self.users.iter().filter(|(_, user)| user.has_role(role)).map(|(name, _)| name.clone()).collect()
    }
}

/// Whether a permission can be for this range: a key, a range that holds one, or all from a key on.
fn is_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || key < range_end || range_end == [0])
}

/// Reads base64 as Go does: line breaks are skipped, bits that are left over are not looked at.
fn decode_hash(base64: &str) -> Result<Vec<u8>, AuthRefusal> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    const GO: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
    let text: String = base64.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    GO.decode(text).map_err(|_| AuthRefusal::NoPasswordUser)
}
