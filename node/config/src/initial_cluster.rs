//! `--initial-cluster`: `name=url,name=url`; a name may repeat, with one URL each time. What members tell each other by a registry
//! is written so too.

use std::collections::{BTreeMap, BTreeSet};

use super::url;

/// The members that the flag names, this one, `name` at `own`, among them.
///
/// # Errors
/// What an empty disk cannot become a member by, in etcd's words.
pub(super) fn members(list: &str, name: &str, own: &[String]) -> Result<BTreeMap<String, Vec<String>>, String> {
    let members = named(list)?;
    let urls: Vec<&String> = members.values().flatten().collect();
    if urls.iter().collect::<BTreeSet<_>>().len() < urls.len() {
        return Err(format!("initial cluster {list} has duplicate url"));
    }
    match members.get(name) {
        None => Err(format!("couldn't find local name {name:?} in the initial cluster configuration")),
        Some(urls) if urls != own => {
            let named: Vec<_> = urls.iter().map(|url| format!("{name}={url}")).collect();
            let (named, own) = (named.join(","), own.join(","));
            Err(format!("--initial-cluster has {named} but missing from --initial-advertise-peer-urls={own}"))
        }
        Some(_) => Ok(members),
    }
}

/// The members that a list names, whoever they are.
///
/// # Errors
/// What is no URL, and a URL that one has twice.
pub fn named(list: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').unwrap_or((part, ""));
        members.entry(name.trim().to_owned()).or_default().push(url.to_owned());
    }
    for urls in members.values_mut() {
        let given = urls.len();
        *urls = url::list(urls).map_err(|error| format!("error setting up initial cluster: {error}"))?;
        if urls.len() < given {
            return Err(format!("initial cluster {list} has duplicate url"));
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_and_urls_must_be_among_them() {
        let of = |list: &str| members(list, "b", &["http://b:2380".to_owned()]);
        assert_eq!(of("a=http://a:2380,b=http://b:2380").map(|members| members.len()), Ok(2));
        assert_eq!(of(",b=HTTP://b:2380, c=http://c:1,").map(|members| members.len()), Ok(2));
        for (list, words) in [
            ("", "couldn't find local name \"b\" in the initial cluster configuration"),
            ("a=http://a:2380", "couldn't find local name \"b\" in the initial cluster configuration"),
            (
                "b=http://c:2380",
                "--initial-cluster has b=http://c:2380 but missing from --initial-advertise-peer-urls=http://b:2380",
            ),
            ("a=http://b:2380,b=http://b:2380", "initial cluster a=http://b:2380,b=http://b:2380 has duplicate url"),
            ("b=http://b:2380,b=http://b:2380", "initial cluster b=http://b:2380,b=http://b:2380 has duplicate url"),
            ("b", "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: "),
            ("b=http://b:2380/", "error setting up initial cluster: URL must not contain a path: http://b:2380/"),
        ] {
            assert_eq!(of(list), Err(words.to_owned()));
        }
    }
}
