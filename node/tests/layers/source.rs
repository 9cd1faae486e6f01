//! Reads which paths the source of a crate names. The layering tests of the node and of the operator rest on it.
//!
//! Test modules are left out: they may stand anywhere and use anything.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of a layer, without its comments, texts and test modules.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Names of the modules from the crate's root down to the file's own.
    pub(crate) modules: Vec<String>,
    pub(crate) text: String,
}

pub(crate) fn sources(layer: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut places = vec![root.join(layer), root.join(layer).with_extension("rs")];
    while let Some(place) = places.pop() {
        if place.is_dir() {
            let entries = fs::read_dir(&place).expect("a folder of the source can be listed");
            places.extend(entries.map(|entry| entry.expect("an entry can be read").path()));
        } else if place.extension().is_some_and(|extension| extension == "rs") && place.is_file() {
            let path = place.strip_prefix(&root).expect("below the root").to_owned();
            let mut modules: Vec<String> =
                path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if modules.last().is_some_and(|name| name == "mod") {
                modules.pop();
            }
            let text = without_tests(&plain(&fs::read_to_string(&place).expect("a source file can be read")));
            found.push(Source { path, modules, text });
        }
    }
    let tests: Vec<_> = found.iter().flat_map(test_modules).collect();
    // A test module in a file beside its own is named by a path: that file ends so.
    let is_test = |source: &Source| source.modules.last().is_some_and(|name| name.ends_with("_tests"));
    found.retain(|source| !is_test(source) && !tests.iter().any(|module| source.modules.starts_with(module)));
    found
}

/// The modules in files of their own that a file declares for tests only.
fn test_modules(source: &Source) -> Vec<Vec<String>> {
    let declared = source.text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let line = rest.lines().next()?.trim().strip_suffix(';')?;
        let name = line.strip_prefix("mod ").or_else(|| line.strip_prefix("pub(crate) mod "))?;
        Some([&source.modules[..], &[name.to_owned()]].concat())
    });
    declared.collect()
}

/// Without comments and without what stands in quotes.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut rest = line;
        while let Some(character) = rest.chars().next() {
            if !quoted && rest.starts_with("//") {
                break;
            }
            if quoted && character == '\\' {
                rest = rest.get(2..).unwrap_or_default();
                continue;
            }
            if character == '"' && !rest.starts_with("\"'") {
                quoted = !quoted;
            } else if !quoted {
                plain.push(character);
            }
            rest = &rest[character.len_utf8()..];
        }
        plain.push('\n');
    }
    plain
}

/// Test modules stand last in a file.
fn without_tests(text: &str) -> String {
    let end = text.match_indices("#[cfg(test)]\n").find(|(at, mark)| {
        let next = text[at + mark.len()..].trim_start();
        next.starts_with("mod ") && next.lines().next().is_some_and(|line| line.ends_with('{'))
    });
    end.map_or(text, |(at, _)| &text[..at]).to_owned()
}

/// Every path that begins with `head`, as the text behind `head::`.
pub(crate) fn behind<'a>(text: &'a str, head: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(head).filter_map(move |(at, _)| {
        let before = text[..at].chars().next_back();
        let free = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '.');
        text[at + head.len()..].strip_prefix("::").filter(|_| free)
    })
}

/// The names that a path goes on with: one, or those of a group.
pub(crate) fn names(rest: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(name(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name: &String| !name.is_empty());
    names
}

/// The top-level modules of this crate that a file names, by `crate::` or by climbing with `super::`.
pub(crate) fn used_modules(source: &Source) -> Vec<String> {
    let mut used: Vec<String> = behind(&source.text, "crate").flat_map(names).collect();
    let climb = vec!["super"; source.modules.len()].join("::");
    used.extend(behind(&source.text, &climb).flat_map(names));
    used
}

/// Whether the text names this path, written out or in a group.
pub(crate) fn names_path(text: &str, path: &str) -> bool {
    if text.contains(&format!("use {path};")) {
        return true;
    }
    match path.rsplit_once("::") {
        None => behind(text, path).next().is_some(),
        Some((parent, last)) => behind(text, parent).flat_map(names).any(|name| name == last),
    }
}

#[test]
fn the_reader_of_paths_sees_what_it_must() {
    let text = plain(
        "use crate::{engine::{Handle, Failure}, domain};\n// use crate::api;\nlet x = \"crate::api\"; super::super::service::f();\n",
    );
    let modules = vec!["domain".to_owned(), "apply".to_owned()];
    let mut used = used_modules(&Source { path: PathBuf::new(), modules, text: text.clone() });
    used.sort();
    assert_eq!(used, ["domain", "engine", "service"]);
    assert!(names_path("use std::time::{Duration, Instant};", "std::time::Instant"));
    assert!(names_path("fn f(at: std::time::Instant)", "std::time::Instant"));
    assert!(!names_path("use std::time::Duration;", "std::time::Instant"));
    assert!(names_path("use tonic::Status;", "tonic"));
    assert!(!names_path("use crate::transport::tonic::PeerMetrics;", "tonic"), "a module of ours of that name");
    let modules = vec!["domain".to_owned()];
    let source = Source { path: PathBuf::new(), modules, text: "mod a;\n#[cfg(test)]\nmod golden;\n".to_owned() };
    assert_eq!(test_modules(&source), [["domain", "golden"]]);
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\n b }"), "a\n");
    assert_eq!(without_tests("a\n#[cfg(test)]\nfn f() {}\nb\n"), "a\n#[cfg(test)]\nfn f() {}\nb\n");
}
