//! Reads the paths that the node's source names, and fails on one that points up a layer or at a crate that the layer
//! must not know. The rules stand in `docs/ARCHITECTURE.md`; this keeps them true.
//!
//! Test modules are left out: they may stand anywhere and use anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A layer, what of this crate it may use beside itself, and which crates (or paths of `std`) it must not name.
struct Layer {
    name: &'static str,
    may_use: &'static [&'static str],
    never: &'static [&'static str],
}

/// What serves requests or keeps bytes.
const WIRE: &[&str] = &["tonic", "axum", "hyper", "hyper_util", "tower", "tonic_health", "tonic_reflection"];

const LAYERS: &[Layer] = &[
    Layer {
        name: "api",
        may_use: &["service", "engine", "domain", "transport", "storage", "config", "metrics"],
        never: &["rocksdb", "raft"],
    },
    Layer {
        name: "service",
        may_use: &["engine", "domain", "transport", "storage", "config", "metrics"],
        never: &["rocksdb", "raft", "tonic", "axum", "hyper", "tower", "std::thread"],
    },
    Layer {
        name: "engine",
        may_use: &["domain", "transport", "storage", "metrics"],
        never: &["rocksdb", "tonic", "axum", "hyper", "tower"],
    },
    Layer {
        name: "domain",
        may_use: &["storage"],
        never: &[
            "rocksdb",
            "tokio",
            "futures",
            "tonic",
            "axum",
            "hyper",
            "tower",
            "parking_lot",
            "prometheus",
            "std::thread",
            "std::fs",
            "std::net",
            "std::env",
            "std::time::Instant",
            "std::time::SystemTime",
            "crate::storage::rocks",
        ],
    },
    Layer { name: "transport", may_use: &["storage", "metrics"], never: &["rocksdb", "axum"] },
    Layer { name: "storage", may_use: &["metrics"], never: WIRE },
    Layer { name: "proxy", may_use: &["api", "config", "engine", "transport"], never: &["rocksdb", "raft"] },
    Layer { name: "config", may_use: &[], never: &["rocksdb", "tonic", "axum", "raft"] },
    Layer { name: "metrics", may_use: &[], never: WIRE },
];

/// A file of a layer, without its comments, texts and test modules.
struct Source {
    path: PathBuf,
    /// Names of the modules from the crate's root down to the file's own.
    modules: Vec<String>,
    text: String,
}

fn sources(layer: &str) -> Vec<Source> {
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
    found.retain(|source| !tests.iter().any(|module| source.modules.starts_with(module)));
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
fn behind<'a>(text: &'a str, head: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(head).filter_map(move |(at, _)| {
        let before = text[..at].chars().next_back();
        let free = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '.');
        text[at + head.len()..].strip_prefix("::").filter(|_| free)
    })
}

/// The names that a path goes on with: one, or those of a group.
fn names(rest: &str) -> Vec<String> {
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
fn used_modules(source: &Source) -> Vec<String> {
    let mut used: Vec<String> = behind(&source.text, "crate").flat_map(names).collect();
    let climb = vec!["super"; source.modules.len()].join("::");
    used.extend(behind(&source.text, &climb).flat_map(names));
    used
}

#[test]
fn no_layer_uses_one_above_it() {
    let mut faults = Vec::new();
    for layer in LAYERS {
        let sources = sources(layer.name);
        assert!(!sources.is_empty(), "there is no source of {}", layer.name);
        for source in &sources {
            for used in used_modules(source) {
                let known = LAYERS.iter().any(|other| other.name == used) || used == "process" || used == "wiring";
                if known && used != layer.name && !layer.may_use.contains(&used.as_str()) {
                    faults.push(format!("{}: {} must not use {used}", source.path.display(), layer.name));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The lint of the workspace denies unsafe code to every crate; these two files alone are let off. A further one is worth a thought,
/// and its name here.
#[test]
fn no_code_is_unsafe_but_where_rocksdb_and_the_scheduler_demand_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let read = |path: &Path| fs::read_to_string(path).expect("a file of the workspace can be read");
    let manifest = read(&root.join("Cargo.toml"));
    // Written in two, so that this file is none of those that name it.
    let lint = ["unsafe", "code"].join("_");
    let lints = manifest.split("[workspace.lints.rust]\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    assert!(lints.is_some_and(|lints| lints.lines().any(|line| line == format!("{lint} = \"deny\""))), "{manifest}");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("the workspace has members");
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(["node", "operator", "crds", "e2e"].iter().all(|member| members.contains(member)), "{members:?}");
    let mut named = BTreeSet::new();
    for member in members {
        let manifest = root.join(member).join("Cargo.toml");
        assert!(read(&manifest).contains("[lints]\nworkspace = true\n"), "{} has lints of its own", manifest.display());
        let files = rust_files(&root.join(member)).into_iter().filter(|file| read(file).contains(&lint));
        named.extend(files.map(|file| file.strip_prefix(root).expect("below the root").display().to_string()));
    }
    assert_eq!(Vec::from_iter(named), ["node/src/process/sched_attr.rs", "node/src/storage/rocks/view.rs"]);
}

/// All below this folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut places) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(place) = places.pop() {
        let entries = fs::read_dir(&place).expect("a folder of the workspace can be listed");
        for path in entries.map(|entry| entry.expect("an entry can be read").path()) {
            if path.is_dir() {
                places.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn no_layer_names_a_crate_it_must_not_know() {
    let mut faults = Vec::new();
    for layer in LAYERS {
        for source in sources(layer.name) {
            for never in layer.never {
                if names_path(&source.text, never) {
                    faults.push(format!("{}: {} must not name {never}", source.path.display(), layer.name));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Whether the text names this path, written out or in a group.
fn names_path(text: &str, path: &str) -> bool {
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
