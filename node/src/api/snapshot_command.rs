//! `balsa snapshot status|restore`: the command line on what `etcdctl snapshot save` stored, spelled as etcdutl's. etcdutl
//! itself cannot read such a file, because it holds files of RocksDB and not a bbolt database.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::config::version::ETCD_CLUSTER_VERSION;
use crate::config::{Config, Invocation};
use crate::domain::restore::RevisionChange;
use crate::engine::NodeConfig;
use crate::service::restore::{self, SnapshotStatus};

/// The first argument that asks for this command.
pub const NAME: &str = "snapshot";

/// What was not done, and the exit code for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// 1, or 128 for arguments that cannot be understood, as etcdutl has it.
    pub exit_code: i32,
    /// Why.
    pub message: String,
}

impl Failed {
    fn with(exit_code: i32, message: impl ToString) -> Self {
        Self { exit_code, message: message.to_string() }
    }
}

/// Runs the command on the arguments behind its name; the answer is printed as it is.
///
/// # Errors
/// [`Failed`].
pub fn run(arguments: impl IntoIterator<Item = String>) -> Result<String, Failed> {
    let arguments = std::iter::once(OsString::from("balsa snapshot")).chain(arguments.into_iter().map(OsString::from));
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp) => return Ok(error.to_string()),
        Err(error) => return Err(Failed::with(128, error)),
    };
    match matches.subcommand() {
        Some(("status", given)) => status(given),
        Some(("restore", given)) => restore_member(given),
        _ => Err(Failed::with(128, command().render_help())),
    }
}

fn command() -> Command {
    let file = Arg::new("file").required(true).value_parser(value_parser!(PathBuf)).help("What snapshot save stored");
    let text = |name: &'static str, help: &'static str| Arg::new(name).long(name).help(help);
    let switch = |name: &'static str, help: &'static str| text(name, help).action(ArgAction::SetTrue);
    let output = text("write-out", "simple, table or json").short('w').default_value("simple");
    let status = Command::new("status")
        .about("Check a snapshot and print its hash, revision, number of key versions and size")
        .arg(file.clone())
        .arg(output.value_parser(["simple", "table", "json"]));
    let bump = text("bump-revision", "Add this to the revision, so that none that a client saw comes again");
    let restore = Command::new("restore")
        .about("Make the data directory of one member of a new cluster out of a snapshot")
        .arg(file)
        .arg(text("name", "Name of this member").default_value("default"))
        .arg(text("data-dir", "Where to make its disk; must be empty [default: <name>.etcd]"))
        .arg(text("initial-cluster", "All members of the new cluster, as name=URL,…"))
        .arg(text("initial-cluster-token", "Tells the new cluster from others").default_value("etcd-cluster"))
        .arg(
            text("initial-advertise-peer-urls", "Where peers reach this member").default_value("http://localhost:2380"),
        )
        .arg(switch("skip-hash-check", "Do not compare checksums"))
        .arg(bump.value_parser(value_parser!(u32)).requires("mark-compacted"))
        .arg(switch("mark-compacted", "Compact at the bumped revision").requires("bump-revision"));
    Command::new(NAME).about("Work on saved snapshots").subcommand(status).subcommand(restore)
}

fn status(given: &ArgMatches) -> Result<String, Failed> {
    let status = restore::status(&path(given), &std::env::temp_dir()).map_err(|error| Failed::with(1, error))?;
    Ok(match given.get_one::<String>("write-out").map(String::as_str) {
        Some("json") => json(&status),
        Some("table") => table(&status),
        _ => columns(&status).join(", ") + "\n",
    })
}

fn path(given: &ArgMatches) -> PathBuf {
    given.get_one::<PathBuf>("file").cloned().unwrap_or_default()
}

/// The flags of the new member are those of a node, so they are checked by the same rules.
fn restore_member(given: &ArgMatches) -> Result<String, Failed> {
    let passed = ["name", "data-dir", "initial-cluster", "initial-cluster-token", "initial-advertise-peer-urls"];
    let flags = passed.iter().filter_map(|name| Some(format!("--{name}={}", given.get_one::<String>(name)?)));
    let config = match Config::load(std::iter::once("balsa".to_owned()).chain(flags), []) {
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Print(text)) => return Ok(text),
        Err(error) => return Err(Failed::with(1, error)),
    };
    let bump = given.get_one::<u32>("bump-revision").copied().map_or(0, i64::from);
    let change = RevisionChange { bump, mark_compacted: given.get_flag("mark-compacted") };
    let check_hash = !given.get_flag("skip-hash-check");
    let restored = restore::restore(&path(given), &NodeConfig::from(&*config), change, check_hash)
        .map_err(|error| Failed::with(1, error))?;
    Ok(format!(
        "restored member {:x} of cluster {:x} at revision {} into {}\n",
        restored.member_id,
        restored.cluster_id,
        restored.revision,
        config.data_dir.display()
    ))
}

fn columns(status: &SnapshotStatus) -> [String; 5] {
    [
        format!("{:x}", status.hash),
        status.revision.to_string(),
        status.total_keys.to_string(),
        bytes(status.total_size),
        ETCD_CLUSTER_VERSION.to_owned(),
    ]
}

fn json(status: &SnapshotStatus) -> String {
    let value = serde_json::json!({
        "hash": status.hash,
        "revision": status.revision,
        "totalKey": status.total_keys,
        "totalSize": status.total_size,
        "version": ETCD_CLUSTER_VERSION,
    });
    format!("{value}\n")
}

fn table(status: &SnapshotStatus) -> String {
    let heads = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"];
    let columns = columns(status);
    let widths: Vec<usize> = heads.iter().zip(&columns).map(|(head, column)| head.len().max(column.len())).collect();
    let line: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect();
    let row = |cells: Vec<String>| -> String {
        let cells = cells.into_iter().zip(&widths).map(|(cell, width)| format!("| {cell:>width$} "));
        cells.collect::<String>() + "|\n"
    };
    let head = heads.iter().zip(&widths).map(|(head, width)| format!("{head:^width$}")).collect();
    format!("{line}+\n{}{line}+\n{}{line}+\n", row(head), row(columns.to_vec()))
}

/// For people, in powers of 1000, with one digit behind the point below 10.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: SnapshotStatus =
        SnapshotStatus { hash: 0xfe01_cf57, revision: 10, total_keys: 7, total_size: 2_109_472 };

    #[test]
    fn a_status_reads_as_etcdutls() {
        assert_eq!(columns(&STATUS).join(", "), "fe01cf57, 10, 7, 2.1 MB, 3.6.0");
        let expected = r#"{"hash":4261531479,"revision":10,"totalKey":7,"totalSize":2109472,"version":"3.6.0"}"#;
        assert_eq!(json(&STATUS), format!("{expected}\n"));
        let table = table(&STATUS);
        let expected = "\
+----------+----------+------------+------------+---------+
|   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE | VERSION |
+----------+----------+------------+------------+---------+
| fe01cf57 |       10 |          7 |     2.1 MB |   3.6.0 |
+----------+----------+------------+------------+---------+
";
        assert_eq!(table, expected);
    }

    #[test]
    fn sizes_are_for_people() {
        let shown = [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (25_000, "25 kB"), (9_960_000, "10 MB")];
        for (count, text) in shown {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused_before_anything_is_done() {
        let run = |line: &str| super::run(line.split_whitespace().map(str::to_owned));
        for line in ["", "status", "status a b", "restore", "restore f --bump-revision=7", "restore f --mark-compacted"]
        {
            assert_eq!(run(line).unwrap_err().exit_code, 128, "{line}");
        }
        let error = run("restore f --name=x --initial-cluster=y=http://localhost:1").unwrap_err();
        assert_eq!(error.exit_code, 1);
        assert!(error.message.contains("find local name \"x\" in the initial cluster"), "{}", error.message);
        assert_eq!(run("status /nonexistent").unwrap_err().exit_code, 1);
    }
}
