//! `--auth-token`: the kind of tokens, in etcd's form `jwt,pub-key=…,priv-key=…,sign-method=…,ttl=…`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, duration, invalid};

/// How long a signed token is good unless the option `ttl` says otherwise.
const JWT_TTL: Duration = Duration::from_secs(300);

const JWT_OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

/// The kind of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthToken {
    /// Random ones that the members remember.
    Simple,
    /// Signed ones.
    Jwt(JwtOptions),
    /// None: only client certificates name users.
    None,
}

/// How tokens are signed and verified. The files are read when the node starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtOptions {
    /// Name of the method, as in the header of a token.
    pub method: String,
    /// PEM file of the key that verifies.
    pub public_key: Option<PathBuf>,
    /// PEM file of the key that signs, or the secret of an HMAC.
    pub private_key: Option<PathBuf>,
    /// How long a token is good.
    pub ttl: Duration,
}

/// Reads the flag, and says what of it has no meaning.
pub(super) fn parse(text: &str) -> Result<(AuthToken, Vec<String>), ConfigError> {
    let wrong = |what: &str| invalid(format!("--auth-token={text}: {what}"));
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for part in parts {
        let (name, value) = part
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| wrong(&format!("{part:?} is not of the form name=value")))?;
        if options.insert(name, value).is_some() {
            return Err(wrong(&format!("{name} is given twice")));
        }
    }
    match kind {
        "simple" => Ok((AuthToken::Simple, Vec::new())),
        "" => Ok((AuthToken::None, Vec::new())),
        "jwt" => {
            let unknown = options.keys().filter(|name| !JWT_OPTIONS.contains(name));
            let warnings = unknown.map(|name| format!("--auth-token: jwt has no option {name}")).collect();
            Ok((AuthToken::Jwt(jwt(&options).map_err(|what| wrong(&what))?), warnings))
        }
        _ => Err(wrong("must be simple or jwt")),
    }
}

fn jwt(options: &BTreeMap<&str, &str>) -> Result<JwtOptions, String> {
    let given = |name: &str| options.get(name).copied().filter(|value| !value.is_empty());
    let ttl = match given("ttl") {
        None => JWT_TTL,
        Some(text) => duration::parse(text).map_err(|_| format!("ttl {text:?} is not a duration"))?,
    };
    Ok(JwtOptions {
        method: given("sign-method").ok_or("sign-method is missing")?.to_owned(),
        public_key: given("pub-key").map(PathBuf::from),
        private_key: given("priv-key").map(PathBuf::from),
        ttl,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_tokens_have_options() {
        let (parsed, warnings) =
            parse("jwt,pub-key=/k/a.pub,priv-key=/k/a,sign-method=RS256,ttl=10m,x=1").expect("good");
        let expected = JwtOptions {
            method: "RS256".into(),
            public_key: Some("/k/a.pub".into()),
            private_key: Some("/k/a".into()),
            ttl: Duration::from_secs(600),
        };
        assert_eq!(parsed, AuthToken::Jwt(expected));
        assert_eq!(warnings, ["--auth-token: jwt has no option x"]);
        let (parsed, _) = parse("jwt,sign-method=HS256").expect("good");
        assert!(matches!(parsed, AuthToken::Jwt(options) if options.ttl == JWT_TTL));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, what) in [
            ("paper", "must be simple or jwt"),
            ("jwt", "sign-method is missing"),
            ("jwt,sign-method=RS256,sign-method=ES256", "sign-method is given twice"),
            ("jwt,sign-method", "not of the form"),
            ("jwt,sign-method=RS256,ttl=soon", "not a duration"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("--auth-token={text}: ")) && error.contains(what), "{error}");
        }
        assert_eq!(parse("simple").expect("good").0, AuthToken::Simple);
        assert_eq!(parse("").expect("good").0, AuthToken::None);
    }
}
