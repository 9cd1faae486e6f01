//! Reads the paths that the node's source names, and fails on one that points up a layer or at a crate that the layer
//! must not know. The rules stand in `docs/ARCHITECTURE.md`; this keeps them true.

#[path = "layers/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use source::{behind, names, names_path, sources, used_modules};

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
            "std::sync::mpsc",
            "std::process",
            "fastrand",
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
    Layer {
        name: "discovery",
        may_use: &["config", "transport"],
        never: &["rocksdb", "raft", "tonic", "axum", "hyper", "tower"],
    },
    Layer { name: "config", may_use: &[], never: &["rocksdb", "tonic", "axum", "raft"] },
    Layer { name: "metrics", may_use: &[], never: WIRE },
];

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

/// The lint of the workspace denies unsafe code to every crate; this file alone is let off. A further one is worth a thought, and its
/// name here.
#[test]
fn no_code_is_unsafe_but_where_rocksdb_demands_it() {
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
    assert_eq!(Vec::from_iter(named), ["node/src/storage/rocks/view.rs"]);
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

/// A presenter calls use cases of `service`. What else it names of the layers below is this and no more; decision 0085 says
/// why of each.
#[test]
fn what_presenters_name_of_the_engine_the_model_and_the_stores_is_listed() {
    let listed: [(&str, &[&str]); 5] = [
        ("crate::engine", &["Failure", "Handle", "Limit", "NodeConfig", "gofail", "request_timeout"]),
        ("crate::domain", &["lease", "restore"]),
        ("crate::domain::lease", &["Renewal"]),
        ("crate::domain::restore", &["RevisionChange"]),
        ("crate::storage", &["StorageError"]),
    ];
    let api = sources("api");
    for (parent, expected) in listed {
        let named: BTreeSet<String> =
            api.iter().flat_map(|source| behind(&source.text, parent)).flat_map(names).collect();
        assert_eq!(named.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{parent}");
    }
}
