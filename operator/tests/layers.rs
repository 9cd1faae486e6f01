//! The steps of the reconcile that decide are pure: they use no client, no clock and no file, and none of the steps that act.
//! This reads the paths that their source names and keeps it so.

#[path = "../../node/tests/layers/source.rs"]
mod source;

use source::{behind, names, names_path, sources, used_modules};

/// A pure step, and what of this crate it may use beside itself.
const PURE: [(&str, &[&str]); 10] = [
    ("valid", &[]),
    ("brief", &[]),
    ("observed", &["names"]),
    ("names", &["observed", "valid"]),
    ("step", &["observed"]),
    ("failures", &["brief", "names", "observed", "step"]),
    ("plan", &["failures", "names", "observed", "step", "valid"]),
    ("build", &["names", "observed", "plan", "valid", "validate"]),
    ("validate", &["build", "names", "valid"]),
    ("status/conditions", &["brief", "names", "observed", "step"]),
];

/// What acts, waits, or gives another answer the next time.
const NEVER: [&str; 19] = [
    "tokio",
    "tonic",
    "futures",
    "hyper",
    "fastrand",
    "parking_lot",
    "prometheus",
    "std::fs",
    "std::env",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "kube::Client",
    "kube::Api",
    "kube::Config",
];

/// The parts of the client's crate in which there is one, or what it sends.
const NEVER_OF_KUBE: [&str; 4] = ["api", "client", "config", "runtime"];

#[test]
fn a_pure_step_uses_none_that_acts() {
    let mut faults = Vec::new();
    for (step, may_use) in PURE {
        let sources = sources(step);
        assert!(!sources.is_empty(), "there is no source of {step}");
        for source in &sources {
            for used in used_modules(source) {
                if used != step && !may_use.contains(&used.as_str()) {
                    faults.push(format!("{}: {step} must not use {used}", source.path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_pure_step_has_no_client_and_no_clock() {
    let mut faults = Vec::new();
    for source in PURE.iter().flat_map(|(step, _)| sources(step)) {
        let named = NEVER.into_iter().filter(|never| names_path(&source.text, never)).map(str::to_owned);
        let of_kube =
            behind(&source.text, "kube").flat_map(names).filter(|name| NEVER_OF_KUBE.contains(&name.as_str()));
        let clocks = source.text.contains("::now()").then(|| "a clock".to_owned());
        let named = named.chain(of_kube.map(|name| format!("kube::{name}"))).chain(clocks);
        faults.extend(named.map(|name| format!("{} must not name {name}", source.path.display())));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A step that is not listed would be held to nothing.
#[test]
fn every_file_of_the_operator_is_pure_or_known_to_act() {
    const ACTS: [&str; 15] = [
        "apply",
        "arguments",
        "client",
        "controller",
        "execute",
        "health",
        "lanes",
        "lease",
        "members",
        "metrics",
        "observe",
        "pulse",
        "signals",
        "status",
        "main",
    ];
    let listed = |module: &String| ACTS.contains(&module.as_str()) || PURE.iter().any(|(step, _)| step == module);
    let modules = sources("").into_iter().filter_map(|source| source.modules.first().cloned());
    // The root names them all, and two are there for tests only.
    let others = ["lib", "fixtures", "rehearsal"];
    let unknown: Vec<String> = modules.filter(|module| !others.contains(&module.as_str()) && !listed(module)).collect();
    assert!(unknown.is_empty(), "neither pure nor known to act: {unknown:?}");
}
