//! The changes of users and roles in a run of entries.

use std::sync::Arc;

use super::state::Changed;
use super::{AuthRefusal, AuthState, rows};
use crate::domain::command::Command;
use crate::storage::WriteBatch;

/// What becomes of tokens that members hold in memory, in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenChange {
    /// A user got a token.
    Assigned {
        /// The token.
        token: String,
        /// The user.
        username: String,
    },
    /// The tokens of a user are void: its password was changed, or it was deleted.
    UserGone(String),
    /// All tokens are void: auth was disabled.
    Cleared,
}

/// A run under way.
pub(crate) struct AuthChanges {
    state: Arc<AuthState>,
    batch: WriteBatch,
    tokens: Vec<TokenChange>,
    changed: bool,
}

impl AuthChanges {
    /// Nothing changed yet.
    pub(crate) fn new(state: Arc<AuthState>) -> Self {
        Self { state, batch: WriteBatch::default(), tokens: Vec::new(), changed: false }
    }

    /// The state as of the command under way.
    pub(crate) fn state(&self) -> &AuthState {
        &self.state
    }

    /// Executes a command that was permitted, in the entry at `index`. The token that it made, else nothing;
    /// so for a command that is not about auth.
    pub(crate) fn execute(&mut self, command: &Command, index: u64) -> Result<String, AuthRefusal> {
        let old = &self.state;
        // Cheap: users and roles are shared with the state before.
        let new = || AuthState::clone(old);
        let (state, changed) = match command {
            Command::Authenticate(request) => return self.authenticate(request, index),
            Command::AuthEnable(_) => attempt(new(), AuthState::enable),
            Command::AuthDisable(_) => attempt(new(), |state| Ok(state.disable())),
            Command::UserAdd(request) => attempt(new(), |state| state.add_user(request)),
            Command::UserDelete(request) => attempt(new(), |state| state.delete_user(&request.name)),
            Command::UserChangePassword(request) => attempt(new(), |state| state.change_password(request)),
            Command::UserGrantRole(request) => attempt(new(), |state| state.grant_role(request)),
            Command::UserRevokeRole(request) => attempt(new(), |state| state.revoke_role(request)),
            Command::RoleAdd(request) => attempt(new(), |state| state.add_role(&request.name)),
            Command::RoleDelete(request) => attempt(new(), |state| state.delete_role(&request.role)),
            Command::RoleGrantPermission(request) => attempt(new(), |state| state.grant_permission(request)),
            Command::RoleRevokePermission(request) => attempt(new(), |state| state.revoke_permission(request)),
            _ => return Ok(String::new()),
        };
        self.accept(state, &changed?);
        Ok(String::new())
    }

    fn accept(&mut self, state: AuthState, changed: &Changed) {
        if *changed == Changed::Nothing {
            return;
        }
        rows::write(&mut self.batch, &state, changed);
        match changed {
            Changed::UserAndTokens(name) => self.tokens.push(TokenChange::UserGone(name.clone())),
            Changed::Meta if !state.is_enabled() => self.tokens.push(TokenChange::Cleared),
            _ => {}
        }
        self.state = Arc::new(state);
        self.changed = true;
    }

    /// Since the password was checked nothing may have changed, its own change least of all.
    fn authenticate(&mut self, request: &balsa_proto::log::Authenticate, index: u64) -> Result<String, AuthRefusal> {
        if !self.state.is_enabled() {
            return Err(AuthRefusal::AuthNotEnabled);
        }
        let user = self.state.user(&request.name).ok_or(AuthRefusal::AuthFailed)?;
        if user.has_no_password() {
            return Err(AuthRefusal::AuthFailed);
        }
        if request.checked_revision != self.state.revision() {
            return Err(AuthRefusal::AuthOldRevision);
        }
        let token = format!("{}.{index}", request.token_prefix);
        self.tokens.push(TokenChange::Assigned { token: token.clone(), username: request.name.clone() });
        Ok(token)
    }

    /// The rows, the state if it changed, and what became of tokens.
    pub(crate) fn finish(self) -> (WriteBatch, Option<Arc<AuthState>>, Vec<TokenChange>) {
        (self.batch, self.changed.then_some(self.state), self.tokens)
    }
}

fn attempt<T>(
    mut state: AuthState,
    change: impl FnOnce(&mut AuthState) -> Result<T, AuthRefusal>,
) -> (AuthState, Result<T, AuthRefusal>) {
    let result = change(&mut state);
    (state, result)
}
