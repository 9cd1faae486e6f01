//! Who calls, and what only some callers may do. The presenters say what a client showed of itself; every use case that
//! serves clients asks here before it does anything for them.
//!
//! Owns the order in which credentials count and what each needs to be good. It must not know what a permission covers:
//! the model decides that.

use std::sync::Arc;

use balsa_proto::etcdserverpb as pb;
use futures::future::BoxFuture;

use super::failure::Error;
use super::member::Member;
use super::tokens::Tokens;
use super::watch::Admission;
use crate::domain::auth::{AuthRefusal, Identity, Need};
use crate::domain::refusal::Refusal;
use crate::engine::Handle;

/// What a client showed of itself with one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The token, as in the metadata; never written to a log.
    pub token: Option<String>,
    /// The common name of the client certificate, if the connection has a verified one and the request came over it
    /// directly. The gateway's requests have none: their certificate would be the gateway's.
    pub common_name: Option<String>,
}

/// How callers prove who they are.
#[derive(Debug, Clone, Default)]
pub struct AuthSettings {
    /// The kind of tokens.
    pub tokens: Tokens,
    /// Whether a client certificate's common name is a user (`--client-cert-auth`).
    pub client_cert_auth: bool,
    /// Strength of password hashes.
    pub bcrypt_cost: u32,
    /// Passwords hashed at once.
    pub password_threads: usize,
}

impl Member {
    /// Who calls. None without credentials, and for everybody while auth is disabled. A token that this member cannot
    /// know yet is waited for.
    ///
    /// # Errors
    /// `InvalidAuthToken`; of a read index.
    pub async fn identify(&self, handle: &Handle, caller: &Caller) -> Result<Option<Identity>, Error> {
        let auth = handle.auth();
        if !auth.is_enabled() {
            return Ok(None);
        }
        let settings = &self.settings().auth;
        let Some(token) = &caller.token else {
            let name = caller.common_name.clone().filter(|_| settings.client_cert_auth);
            return Ok(name.map(|username| Identity { username, revision: auth.revision() }));
        };
        match &settings.tokens {
            Tokens::None => Err(Error::InvalidAuthToken),
            Tokens::Jwt(keys) => keys.verify(token).map(Some).ok_or(Error::InvalidAuthToken),
            Tokens::Simple => simple(handle, token).await.map(Some),
        }
    }

    /// Refuses whoever is not root. The answer is for a proposal.
    ///
    /// # Errors
    /// `UserEmpty`, `UserNotFound`, `PermissionDenied`; see [`identify`](Self::identify).
    pub async fn require_root(&self, handle: &Handle, caller: &Caller) -> Result<Option<Identity>, Error> {
        let who = self.identify(handle, caller).await?;
        handle.auth().check_admin(&who.clone().unwrap_or_default()).map_err(refused)?;
        Ok(who)
    }

    /// Refuses a caller without credentials.
    ///
    /// # Errors
    /// `UserEmpty`; see [`identify`](Self::identify).
    pub async fn require_user(&self, handle: &Handle, caller: &Caller) -> Result<Option<Identity>, Error> {
        let who = self.identify(handle, caller).await?;
        if who.is_none() && handle.auth().is_enabled() { Err(refused(AuthRefusal::UserEmpty)) } else { Ok(who) }
    }

    /// What decides whether `caller` may open a watch.
    pub fn watch_admission(self: Arc<Self>, caller: Caller) -> Box<dyn Admission> {
        Box::new(WatchAdmission { member: self, caller })
    }
}

/// A token stands for the present: whoever holds one has the permissions of now.
async fn simple(handle: &Handle, token: &str) -> Result<Identity, Error> {
    // The revision first: a change that ends the token in between makes it an old one.
    let known = || {
        let revision = handle.auth().revision();
        handle.user_of(token).map(|username| Identity { username, revision })
    };
    if let Some(identity) = known() {
        return Ok(identity);
    }
    let index = index_of(token).ok_or(Error::InvalidAuthToken)?;
    if index > handle.status().applied {
        // Another member gave it. It was committed before its client learned it, so this one has it after a read index.
        handle.read_index().await?;
    }
    known().ok_or(Error::InvalidAuthToken)
}

/// The Raft index in a token.
fn index_of(token: &str) -> Option<u64> {
    let (_, index) = token.split_once('.')?;
    index.parse().ok()
}

/// A refusal in the words of the table.
pub(crate) fn refused(refusal: AuthRefusal) -> Error {
    Refusal::Auth(refusal).into()
}

struct WatchAdmission {
    member: Arc<Member>,
    caller: Caller,
}

impl Admission for WatchAdmission {
    fn admit<'a>(&'a self, request: &'a pb::WatchCreateRequest) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let handle = self.member.handle()?;
            let who = self.member.identify(&handle, &self.caller).await?.unwrap_or_default();
            // As the client wrote it: an open range is told from a single key by the range end only.
            let key: &[u8] = if request.key.is_empty() { b"\0" } else { &request.key };
            handle.auth().check_keys(&who, Need::Read, key, &request.range_end).map_err(refused)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_behind_one_dot_is_an_index() {
        assert_eq!(index_of("abc.7"), Some(7));
        for token in ["abc", "abc.", "abc.-1", "abc.x", "a.b.7", ""] {
            assert_eq!(index_of(token), None, "{token:?}");
        }
    }
}
