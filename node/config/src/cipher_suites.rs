//! Cipher suites by the names that Go has for them, as etcd's flags take them: which are spoken here, and which are known and
//! left out. A list that is common among etcd's users names suites that no client needs any more; it starts a node too.

/// Suites of TLS 1.2 that are spoken, the older names of two of them, and those of TLS 1.3, which are spoken whatever a list says.
const SPOKEN: [&str; 11] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// What Go has besides: without forward secrecy, or with CBC, RC4 or 3DES.
const LEFT_OUT: [&str; 16] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// HTTP/2 demands one of these of whoever speaks TLS 1.2.
const OF_HTTP2: [&str; 2] = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"];

/// What a list of names came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suites {
    /// Those that are spoken; `None` for all, when none was named.
    pub spoken: Option<Vec<String>>,
    /// Those that are known, and not spoken.
    pub left_out: Vec<String>,
}

impl Suites {
    /// Reads a list of names.
    ///
    /// # Errors
    /// One that Go does not know, in etcd's words.
    pub fn of(names: &[String]) -> Result<Self, String> {
        let (spoken, rest): (Vec<String>, Vec<String>) =
            names.iter().cloned().partition(|name| SPOKEN.contains(&name.as_str()));
        match rest.iter().find(|name| !LEFT_OUT.contains(&name.as_str())) {
            Some(unknown) => Err(format!("unexpected TLS cipher suite {unknown:?}")),
            None => Ok(Self { spoken: (!names.is_empty()).then_some(spoken), left_out: rest }),
        }
    }

    /// What is to be said of those that are left out, if any is, of a flag of this name.
    pub fn warning(&self, flag: &str) -> Option<String> {
        let named = self.left_out.join(",");
        let what = "suites without forward secrecy or with CBC are not spoken";
        (!named.is_empty()).then(|| format!("--{flag}: {named} has no effect: {what}"))
    }

    /// Why HTTP/2 cannot be served with these and TLS 1.2; in the words of Go's library for it, which ends etcd's start by them.
    pub fn refusal_of_http2(&self) -> Option<String> {
        let spoken = self.spoken.as_ref()?;
        let what = "http2: TLSConfig.CipherSuites is missing an HTTP/2-required AES_128_GCM_SHA256 cipher";
        let [rsa, ecdsa] = OF_HTTP2;
        let lacks = !spoken.iter().any(|name| OF_HTTP2.contains(&name.as_str()));
        lacks.then(|| format!("{what} (need at least one of {rsa} or {ecdsa})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[&str]) -> Result<Suites, String> {
        Suites::of(&list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn gos_names_are_spoken_or_left_out_and_others_refused() {
        let all = of(&[]).unwrap();
        assert_eq!((all.spoken.as_ref(), all.warning("x"), all.refusal_of_http2()), (None, None, None));
        let mixed = of(&["TLS_RSA_WITH_AES_256_GCM_SHA384", SPOKEN[0], "TLS_AES_128_GCM_SHA256"]).unwrap();
        assert_eq!(mixed.spoken.as_ref().unwrap(), &[SPOKEN[0], "TLS_AES_128_GCM_SHA256"]);
        assert!(
            mixed.warning("cipher-suites").unwrap().contains("--cipher-suites: TLS_RSA_WITH_AES_256_GCM_SHA384 has")
        );
        assert_eq!(mixed.refusal_of_http2(), None);
        let weak = of(&["TLS_RSA_WITH_RC4_128_SHA"]).unwrap();
        assert_eq!(weak.spoken.as_deref(), Some(&[][..]), "none, and not all");
        assert!(weak.refusal_of_http2().unwrap().starts_with("http2: TLSConfig.CipherSuites is missing"));
        assert_eq!(of(&[SPOKEN[0], "TLS_NONE"]).unwrap_err(), "unexpected TLS cipher suite \"TLS_NONE\"");
        assert!(of(&["tls_aes_128_gcm_sha256"]).is_err(), "names are written as Go has them");
    }
}
