//! What each request needs. The whole of a transaction is checked, both branches and all that is nested, before any of
//! it runs: which branch is taken is itself an answer.

use balsa_proto::etcdserverpb as pb;
use bytes::Bytes;
use pb::request_op::Request;

use super::{AuthRefusal, AuthState, Identity, Need};
use crate::domain::command::Command;
use crate::domain::lease::table;
use crate::domain::mvcc::ReadError;
use crate::domain::refusal::Refusal;
use crate::storage::{StorageError, View};

/// The keys that leases are attached to.
pub trait LeaseKeys {
    /// The keys of a lease; none when there is no such lease.
    ///
    /// # Errors
    /// Of the store.
    fn keys_of(&self, lease: i64) -> Result<Vec<Bytes>, StorageError>;
}

/// For requests that attach nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoLeases;

impl LeaseKeys for NoLeases {
    fn keys_of(&self, _lease: i64) -> Result<Vec<Bytes>, StorageError> {
        Ok(Vec::new())
    }
}

/// The keys of the leases that a view shows.
pub struct LeasesOf<'a, V>(pub &'a V);

impl<V: View> LeaseKeys for LeasesOf<'_, V> {
    fn keys_of(&self, lease: i64) -> Result<Vec<Bytes>, StorageError> {
        table::keys(self.0, lease, usize::MAX)
    }
}

impl AuthState {
    /// Whether a command may be applied for `who`. Compactions are checked by the service, like everything that is not
    /// about keys or users, because members make them on their own account too; what ends leases when their time is over
    /// comes from members only. A lease without keys decides over nothing, so anybody may have one.
    pub(crate) fn check_command(
        &self,
        who: &Identity,
        command: &Command,
        leases: &impl LeaseKeys,
    ) -> Result<(), ReadError> {
        match command {
            _ if !self.is_enabled() => Ok(()),
            Command::Put(put) => self.check_put(who, put, leases),
            Command::DeleteRange(delete) => Ok(self.check_delete(who, delete)?),
            Command::Txn(txn) => self.check_txn(who, txn, leases),
            Command::AuthEnable(_)
            | Command::AuthDisable(_)
            | Command::UserAdd(_)
            | Command::UserDelete(_)
            | Command::UserChangePassword(_)
            | Command::UserGrantRole(_)
            | Command::UserRevokeRole(_)
            | Command::RoleAdd(_)
            | Command::RoleDelete(_)
            | Command::RoleGrantPermission(_)
            | Command::RoleRevokePermission(_) => Ok(self.check_admin(who)?),
            Command::LeaseRevoke(revoke) => self.check_lease(who, Need::Write, revoke.id, leases),
            Command::LeaseGrant(_) | Command::LeaseExpire(_) | Command::LeaseCheckpoint(_) => Ok(()),
            Command::Alarm(_) | Command::Downgrade(_) => Ok(self.check_admin(who)?),
            Command::Authenticate(_) | Command::Compact(_) | Command::Publish(_) => Ok(()),
        }
    }

    /// Whether a range may be read.
    ///
    /// # Errors
    /// See [`AuthState::check_keys`].
    pub fn check_range(&self, who: &Identity, request: &pb::RangeRequest) -> Result<(), AuthRefusal> {
        self.check_keys(who, Need::Read, &request.key, &request.range_end)
    }

    /// Whether a transaction may run.
    ///
    /// # Errors
    /// See [`AuthState::check_keys`]; of the store.
    pub fn check_txn(
        &self,
        who: &Identity,
        request: &pb::TxnRequest,
        leases: &impl LeaseKeys,
    ) -> Result<(), ReadError> {
        for compare in &request.compare {
            self.check_keys(who, Need::Read, &compare.key, &compare.range_end)?;
        }
        for operation in request.success.iter().chain(&request.failure) {
            match &operation.request {
                Some(Request::RequestRange(range)) => self.check_range(who, range)?,
                Some(Request::RequestPut(put)) => self.check_put(who, put, leases)?,
                Some(Request::RequestDeleteRange(delete)) => self.check_delete(who, delete)?,
                Some(Request::RequestTxn(nested)) => self.check_txn(who, nested, leases)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Whoever may write all keys of a lease may attach it to another key, revoke it and keep it alive: each of these
    /// decides over the life of all of them.
    ///
    /// # Errors
    /// See [`AuthState::check_keys`]; of the store.
    pub fn check_lease(
        &self,
        who: &Identity,
        need: Need,
        lease: i64,
        leases: &impl LeaseKeys,
    ) -> Result<(), ReadError> {
        if self.check_admin(who).is_ok() {
            return Ok(());
        }
        Ok(self.check_each(who, need, &leases.keys_of(lease)?)?)
    }

    /// Whether each of the keys is permitted.
    ///
    /// # Errors
    /// See [`AuthState::check_keys`].
    pub fn check_each(&self, who: &Identity, need: Need, keys: &[Bytes]) -> Result<(), AuthRefusal> {
        keys.iter().try_for_each(|key| self.check_keys(who, need, key, b""))
    }

    fn check_put(&self, who: &Identity, put: &pb::PutRequest, leases: &impl LeaseKeys) -> Result<(), ReadError> {
        self.check_keys(who, Need::Write, &put.key, b"")?;
        if put.lease != 0 {
            self.check_lease(who, Need::Write, put.lease, leases)?;
        }
        if put.prev_kv {
            self.check_keys(who, Need::Read, &put.key, b"")?;
        }
        Ok(())
    }

    fn check_delete(&self, who: &Identity, delete: &pb::DeleteRangeRequest) -> Result<(), AuthRefusal> {
        self.check_keys(who, Need::Write, &delete.key, &delete.range_end)?;
        if delete.prev_kv {
            self.check_keys(who, Need::Read, &delete.key, &delete.range_end)?;
        }
        Ok(())
    }
}

impl From<AuthRefusal> for ReadError {
    fn from(refusal: AuthRefusal) -> Self {
        ReadError::Refused(Refusal::Auth(refusal))
    }
}
