//! What this member knows of users and of their tokens, for the checks that services make before they read or propose.
//!
//! Users and roles are the model's, announced by the applier before a view can show what they were changed with. Tokens
//! are kept in memory only: they come and go by the log, so every member that was there has them, and they expire by
//! this member's clock. A member that restarts or takes a snapshot has lost some; their clients authenticate again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::domain::apply::Effects;
use crate::domain::auth::{AuthState, TokenChange};

/// Tokens held at once, about 150 bytes each. With one more, the one that would expire first goes: its client
/// authenticates again.
const MAX_TOKENS: usize = 65_536;

/// How often expired tokens are looked for, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Users, roles and tokens of one member.
pub struct Credentials {
    state: RwLock<Arc<AuthState>>,
    tokens: Mutex<Tokens>,
}

impl Credentials {
    /// Without tokens. A token that is not used for `token_ttl` expires.
    pub(crate) fn new(state: Arc<AuthState>, token_ttl: Duration) -> Self {
        Self { state: RwLock::new(state), tokens: Mutex::new(Tokens::new(token_ttl)) }
    }

    /// The users and roles that count now.
    pub fn state(&self) -> Arc<AuthState> {
        self.state.read().clone()
    }

    /// The user of a token that is good. Its time starts anew.
    pub fn user_of(&self, token: &str) -> Option<String> {
        self.tokens.lock().user_of(token, Instant::now())
    }

    /// Takes over what a run of entries changed.
    pub(crate) fn announce(&self, effects: &Effects) {
        if let Some(state) = &effects.auth {
            *self.state.write() = state.clone();
        }
        if !effects.tokens.is_empty() {
            let (mut tokens, now) = (self.tokens.lock(), Instant::now());
            effects.tokens.iter().for_each(|change| tokens.change(change, now));
        }
    }

    /// A snapshot brought another state. Which tokens were void in between is not in it, so all are.
    pub(crate) fn replace(&self, state: Arc<AuthState>) {
        *self.state.write() = state;
        self.tokens.lock().held.clear();
    }
}

struct Held {
    username: String,
    expires: Instant,
}

struct Tokens {
    held: HashMap<String, Held>,
    ttl: Duration,
    swept: Option<Instant>,
}

impl Tokens {
    fn new(ttl: Duration) -> Self {
        Self { held: HashMap::new(), ttl, swept: None }
    }

    fn user_of(&mut self, token: &str, now: Instant) -> Option<String> {
        let held = self.held.get_mut(token).filter(|held| held.expires > now)?;
        held.expires = now + self.ttl;
        Some(held.username.clone())
    }

    fn change(&mut self, change: &TokenChange, now: Instant) {
        match change {
            TokenChange::Assigned { token, username } => {
                self.make_room(now);
                let held = Held { username: username.clone(), expires: now + self.ttl };
                self.held.insert(token.clone(), held);
            }
            TokenChange::UserGone(name) => self.held.retain(|_, held| held.username != *name),
            TokenChange::Cleared => self.held.clear(),
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.swept.is_none_or(|last| now.saturating_duration_since(last) >= SWEEP_EVERY) {
            self.swept = Some(now);
            self.held.retain(|_, held| held.expires > now);
        }
        if self.held.len() >= MAX_TOKENS {
            let first = self.held.iter().min_by_key(|(_, held)| held.expires).map(|(token, _)| token.clone());
            first.and_then(|token| self.held.remove(&token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn assigned(token: &str, username: &str) -> TokenChange {
        TokenChange::Assigned { token: token.to_owned(), username: username.to_owned() }
    }

    fn held(now: Instant) -> Tokens {
        let mut tokens = Tokens::new(TTL);
        for (token, username) in [("a.1", "alice"), ("a.2", "alice"), ("b.3", "bob")] {
            tokens.change(&assigned(token, username), now);
        }
        tokens
    }

    #[test]
    fn a_token_expires_unless_it_is_used() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut tokens = held(now);
        assert_eq!(tokens.user_of("a.1", now + TTL - second).as_deref(), Some("alice"));
        assert_eq!(tokens.user_of("a.1", now + TTL + second).as_deref(), Some("alice"), "its time starts anew");
        assert_eq!(tokens.user_of("a.2", now + TTL), None);
        assert_eq!(tokens.user_of("a.4", now), None);
        tokens.change(&assigned("c.9", "carol"), now + TTL + second);
        assert_eq!(tokens.held.len(), 2, "expired ones are not kept");
    }

    #[test]
    fn the_tokens_of_a_user_that_is_gone_are_void() {
        let now = Instant::now();
        let mut tokens = held(now);
        tokens.change(&TokenChange::UserGone("alice".into()), now);
        assert_eq!((tokens.user_of("a.1", now), tokens.user_of("a.2", now)), (None, None));
        assert_eq!(tokens.user_of("b.3", now).as_deref(), Some("bob"));
        tokens.change(&TokenChange::Cleared, now);
        assert_eq!(tokens.user_of("b.3", now), None);
    }

    #[test]
    fn one_token_too_many_ends_the_oldest() {
        let now = Instant::now();
        let mut tokens = Tokens::new(TTL);
        for number in 0..=MAX_TOKENS {
            tokens.change(&assigned(&number.to_string(), "alice"), now + Duration::from_micros(number as u64));
        }
        assert_eq!(tokens.held.len(), MAX_TOKENS);
        assert_eq!(tokens.user_of("0", now), None);
        assert!(tokens.user_of("1", now).is_some());
    }
}
