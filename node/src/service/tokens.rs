//! Kinds of tokens. A simple token is a random name that every member learns from the log; a JSON web token proves
//! itself by a signature and needs nobody's memory.

use std::sync::Arc;

use super::failure::Error;
use super::jwt::{JwtKeys, TokenKeyError};
use crate::config::auth_token::AuthToken;

/// Random letters of a simple token.
const PREFIX_LETTERS: usize = 16;

/// How callers name themselves.
#[derive(Debug, Clone, Default)]
pub enum Tokens {
    /// Random, and known to the members.
    #[default]
    Simple,
    /// Signed.
    Jwt(Arc<JwtKeys>),
    /// None at all: only certificates count.
    None,
}

impl Tokens {
    /// Reads the keys that the configuration names.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a key for the method; keys that do not belong together.
    pub fn open(configured: &AuthToken) -> Result<Self, TokenKeyError> {
        match configured {
            AuthToken::Simple => Ok(Tokens::Simple),
            AuthToken::None => Ok(Tokens::None),
            AuthToken::Jwt(options) => JwtKeys::open(options).map(Arc::new).map(Tokens::Jwt),
        }
    }
}

/// Sixteen random letters.
///
/// # Errors
/// The system has no random numbers.
pub fn random_prefix() -> Result<String, Error> {
    const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut prefix = String::with_capacity(PREFIX_LETTERS);
    while prefix.len() < PREFIX_LETTERS {
        let mut bytes = [0; 2 * PREFIX_LETTERS];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Internal("no random numbers".to_owned()))?;
        // What is above the last multiple of 52 would make some letters likelier than others.
        let fair = bytes.iter().filter(|byte| **byte < 208).map(|byte| char::from(LETTERS[usize::from(*byte) % 52]));
        prefix.extend(fair.take(PREFIX_LETTERS - prefix.len()));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_letters_and_not_twice_the_same() {
        let drawn: std::collections::HashSet<String> = (0..100).map(|_| random_prefix().unwrap()).collect();
        assert_eq!(drawn.len(), 100);
        assert!(drawn.iter().all(|prefix| prefix.len() == 16 && prefix.bytes().all(|b| b.is_ascii_alphabetic())));
    }
}
