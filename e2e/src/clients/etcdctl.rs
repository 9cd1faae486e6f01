//! etcdctl with the same commands against an etcd and a Balsa: exit code, output and errors must be the same, ids, terms,
//! sizes and times apart. The commands are the lines of `e2e/clients/etcdctl/script` and `secured`, each for a shell.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

const SCRIPT: &str = include_str!("../../clients/etcdctl/script");
/// The commands that only a cluster with users and TLS answers so.
const SECURED: &str = include_str!("../../clients/etcdctl/secured");

/// How long a line may take.
const BOUND: Duration = Duration::from_secs(60);

/// Fields of JSON output that are a cluster's own.
const OWN: [&str; 17] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "ID",
    "id",
    "leader",
    "raftIndex",
    "raftAppliedIndex",
    "raftTerm",
    "dbSize",
    "dbSizeInUse",
    "version",
    "storageVersion",
    "Endpoint",
    "memberID",
    "hash",
    "name",
];

/// Variables of a command's environment.
pub type Environment = Vec<(&'static str, String)>;

/// Runs the script line by line on both and compares; how many lines these are.
///
/// # Errors
/// The lines that differ, with both outputs.
pub async fn compare(cache: &Path, etcd: &Environment, balsa: &Environment) -> anyhow::Result<usize> {
    let lines: Vec<&str> = commands(SCRIPT).collect();
    compare_lines(cache, etcd, balsa, &lines).await
}

/// The same behind TLS, as a user: the lines that wait for nothing, and those about users.
///
/// # Errors
/// The lines that differ, with both outputs.
pub async fn compare_secured(cache: &Path, etcd: &Environment, balsa: &Environment) -> anyhow::Result<usize> {
    let quick = |line: &&str| !line.contains("sleep ") && !line.contains("timeout ");
    let lines: Vec<&str> = commands(SCRIPT).filter(quick).chain(commands(SECURED)).collect();
    compare_lines(cache, etcd, balsa, &lines).await
}

fn commands(script: &str) -> impl Iterator<Item = &str> {
    script.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

async fn compare_lines(cache: &Path, etcd: &Environment, balsa: &Environment, lines: &[&str]) -> anyhow::Result<usize> {
    let mut differences = Vec::new();
    for line in lines {
        let (etcd, balsa) = tokio::join!(said(cache, etcd, line), said(cache, balsa, line));
        let (etcd, balsa) = (etcd?, balsa?);
        if etcd != balsa {
            differences.push(format!("$ {line}\n--- etcd\n{etcd}\n--- balsa\n{balsa}"));
        }
    }
    if differences.is_empty() { Ok(lines.len()) } else { bail!("{}", differences.join("\n\n")) }
}

/// Runs lines of bash, in which etcdctl is that of the cache.
///
/// # Errors
/// Bash cannot be run, or is not done in time.
pub async fn bash(cache: &Path, environment: &Environment, lines: &str) -> anyhow::Result<Output> {
    let path = format!("{}:{}", cache.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    shell.args(["-c", lines]).env("PATH", path).envs(environment.iter().cloned()).stdin(Stdio::null());
    Ok(timeout(BOUND, shell.kill_on_drop(true).output()).await.with_context(|| lines.to_owned())??)
}

async fn said(cache: &Path, environment: &Environment, line: &str) -> anyhow::Result<String> {
    let output = bash(cache, environment, line).await?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let errors: Vec<&str> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
    let text = stdout.lines().chain(errors).map(normalise).collect::<Vec<_>>().join("\n");
    Ok(format!("{text}\n(exit {:?})", output.status.code()))
}

/// A line without what is a cluster's own.
fn normalise(line: &str) -> String {
    match serde_json::from_str::<Value>(line) {
        Ok(mut value) if value.is_object() || value.is_array() => {
            forget_own(&mut value);
            value.to_string()
        }
        _ => line.split(' ').map(word).collect::<Vec<_>>().join(" "),
    }
}

fn forget_own(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // Balsa's is off by default, and what is 0 is not printed.
            fields.remove("dbSizeQuota");
            for (name, field) in fields {
                if OWN.contains(&name.as_str()) {
                    *field = Value::from("own");
                } else if name == "peerURLs" || name == "clientURLs" {
                    *field = Value::from(field.as_array().map_or(0, Vec::len));
                } else {
                    forget_own(field);
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(forget_own),
        _ => {}
    }
}

/// Ids are 12 hexadecimal digits and more, durations end with their unit, addresses have ports.
fn word(word: &str) -> String {
    let plain = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let is_id = plain.len() >= 12 && plain.chars().all(|c| c.is_ascii_hexdigit());
    let is_duration = plain.strip_suffix('s').is_some_and(|rest| {
        let number = rest.trim_end_matches(['m', 'µ', 'n']);
        number.contains('.') && number.parse::<f64>().is_ok()
    });
    match word.find("127.0.0.1:") {
        Some(_) => "<address>".to_owned(),
        None if is_id => word.replace(plain, "<id>"),
        None if is_duration => word.replace(plain, "<time>"),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_clusters_own_goes_and_the_rest_stays() {
        assert_eq!(normalise("lease 694d9a1b2c3d4e5f granted with TTL(60s)"), "lease <id> granted with TTL(60s)");
        assert_eq!(normalise("http://127.0.0.1:2379 is healthy: took = 1.53ms"), "<address> is healthy: took = <time>");
        assert_eq!(
            normalise(r#"{"header":{"member_id":5,"revision":7}}"#),
            r#"{"header":{"member_id":"own","revision":7}}"#
        );
        assert_eq!(normalise("foo"), "foo");
    }
}
