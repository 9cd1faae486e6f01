//! The rows of the table `auth`: one of its own, one per user, one per role.

use std::ops::{Bound, ControlFlow};

use balsa_proto::authpb::{Role, User};
use balsa_proto::log::AuthMeta;
use bytes::Bytes;
use prost::Message;

use super::AuthState;
use super::state::Changed;
use crate::domain::mvcc::encoding::decode;
use crate::storage::{StorageError, Table, View, WriteBatch};

const META: &[u8] = b"meta";
const USER: u8 = b'u';
const ROLE: u8 = b'r';

fn key(kind: u8, name: &str) -> Vec<u8> {
    [&[kind, b'/'], name.as_bytes()].concat()
}

/// Reads users and roles of a view; a table without rows is that of a store on which nobody ever touched auth.
///
/// # Errors
/// Of the store; rows that cannot be decoded.
pub fn load(view: &impl View) -> Result<AuthState, StorageError> {
    let Some(meta) = view.get(Table::Auth, META)? else { return Ok(AuthState::default()) };
    let meta: AuthMeta = decode("auth", meta)?;
    let users = read_all::<User>(view, USER)?;
    let roles = read_all::<Role>(view, ROLE)?;
    Ok(AuthState::restored((meta.enabled, meta.revision), users, roles))
}

fn read_all<M: Message + Default>(view: &impl View, kind: u8) -> Result<Vec<M>, StorageError> {
    let (low, high) = ([kind, b'/'], [kind, b'/' + 1]);
    let mut rows = Vec::new();
    let bounds = (Bound::Included(&low[..]), Bound::Excluded(&high[..]));
    view.scan(Table::Auth, bounds, false, &mut |_, row| {
        rows.push(Bytes::copy_from_slice(row));
        ControlFlow::Continue(())
    })?;
    rows.into_iter().map(|row| decode("auth", row)).collect()
}

/// Writes what a change left.
pub(super) fn write(batch: &mut WriteBatch, state: &AuthState, changed: &Changed) {
    match changed {
        Changed::Nothing => return,
        Changed::Meta => {}
        Changed::User(name) | Changed::UserAndTokens(name) => write_user(batch, state, name),
        Changed::Role(name) => write_role(batch, state, name),
        Changed::RoleAndUsers(name, users) => {
            write_role(batch, state, name);
            users.iter().for_each(|user| write_user(batch, state, user));
        }
    }
    let meta = AuthMeta { enabled: state.enabled, revision: state.revision };
    batch.put(Table::Auth, META, meta.encode_to_vec());
}

fn write_user(batch: &mut WriteBatch, state: &AuthState, name: &str) {
    match state.users.get(name) {
        Some(user) => batch.put(Table::Auth, key(USER, name), user.record.encode_to_vec()),
        None => batch.delete(Table::Auth, key(USER, name)),
    }
}

fn write_role(batch: &mut WriteBatch, state: &AuthState, name: &str) {
    match state.roles.get(name) {
        Some(role) => batch.put(Table::Auth, key(ROLE, name), role.encode_to_vec()),
        None => batch.delete(Table::Auth, key(ROLE, name)),
    }
}
