//! What a certificate says of its bearer, and what a revocation list says of certificates.

use std::net::IpAddr;

use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

/// The attribute of a name that is its common name.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// The subject of a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its common name; empty when it has none.
    pub common_name: String,
    /// Host names that it is valid for.
    pub dns_names: Vec<String>,
    /// Addresses that it is valid for.
    pub addresses: Vec<IpAddr>,
    /// Its serial number, big-endian without leading zeros.
    pub serial: Vec<u8>,
}

impl Subject {
    /// Reads a certificate. What it is signed by is not looked at.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn of(der: &[u8]) -> Result<Self, String> {
        let certificate = Certificate::from_der(der).map_err(|error| error.to_string())?.tbs_certificate;
        let mut subject = Self {
            common_name: common_name(&certificate.subject),
            serial: trimmed(certificate.serial_number.as_bytes()),
            ..Self::default()
        };
        let names = certificate.get::<SubjectAltName>().map_err(|error| error.to_string())?;
        names.iter().flat_map(|(_, names)| &names.0).for_each(|name| subject.add(name));
        Ok(subject)
    }

    fn add(&mut self, name: &GeneralName) {
        match name {
            GeneralName::DnsName(name) => self.dns_names.push(name.as_str().to_owned()),
            GeneralName::IpAddress(address) => {
                let v4 = <[u8; 4]>::try_from(address.as_bytes()).map(IpAddr::from);
                self.addresses.extend(v4.or_else(|_| <[u8; 16]>::try_from(address.as_bytes()).map(IpAddr::from)));
            }
            _ => {}
        }
    }

    /// Whether the certificate is valid for a host, a name or an address.
    pub fn is_valid_for(&self, host: &str) -> bool {
        match host.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self.dns_names.iter().any(|pattern| matches(pattern, host)),
        }
    }
}

/// A `*` stands for exactly the first label.
fn matches(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (pattern.trim_end_matches('.'), host.trim_end_matches('.'));
    match pattern.strip_prefix("*.") {
        None => pattern.eq_ignore_ascii_case(host),
        Some(rest) => {
            host.split_once('.').is_some_and(|(first, parent)| !first.is_empty() && rest.eq_ignore_ascii_case(parent))
        }
    }
}

/// The serial numbers of a revocation list in DER. As in etcd, its signature is not looked at: the file is ours.
///
/// # Errors
/// It is no revocation list.
pub(super) fn revoked(der: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let list = CertificateList::from_der(der).map_err(|error| error.to_string())?.tbs_cert_list;
    let revoked = list.revoked_certificates.unwrap_or_default();
    Ok(revoked.iter().map(|revoked| trimmed(revoked.serial_number.as_bytes())).collect())
}

/// The last one counts, as in Go.
fn common_name(name: &Name) -> String {
    let attributes = name.0.iter().flat_map(|part| part.0.iter()).filter(|attribute| attribute.oid == COMMON_NAME);
    let mut texts = attributes.filter_map(|attribute| match attribute.value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString => {
            std::str::from_utf8(attribute.value.value()).ok()
        }
        _ => None,
    });
    texts.next_back().unwrap_or_default().to_owned()
}

fn trimmed(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, host, expected) in [
            ("a.b.c", "A.b.c", true),
            ("*.b.c", "a.b.c", true),
            ("*.b.c", "b.c", false),
            ("*.b.c", "x.a.b.c", false),
            ("*.b.c", ".b.c", false),
            ("a.b", "a.b.c", false),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn a_certificate_says_who_bears_it() {
        let mut parameters = rcgen::CertificateParams::new(["m.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "root");
        parameters.serial_number = Some(rcgen::SerialNumber::from(vec![0, 7, 9]));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let subject = Subject::of(certificate.der()).unwrap();
        assert_eq!((subject.common_name.as_str(), &subject.serial[..]), ("root", &[7, 9][..]));
        assert!(subject.is_valid_for("m.example") && subject.is_valid_for("10.0.0.1"));
        assert!(!subject.is_valid_for("n.example") && !subject.is_valid_for("10.0.0.2"));
        assert!(Subject::of(b"nonsense").is_err());
    }
}
