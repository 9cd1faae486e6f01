//! What the system says of the process, beyond what the library reads: as etcd's library does, under its names.

use std::fs;
use std::sync::LazyLock;

use prometheus::{Gauge, IntCounter, IntGauge};

use super::{counter, registered};

/// The numbers of one process.
struct Process {
    open_files: IntGauge,
    max_files: IntGauge,
    max_memory: Gauge,
    received: IntCounter,
    sent: IntCounter,
}

static PROCESS: LazyLock<Process> = LazyLock::new(|| Process {
    open_files: registered(IntGauge::new("os_fd_used", "The number of used file descriptors.")),
    max_files: registered(IntGauge::new("os_fd_limit", "The file descriptor limit.")),
    max_memory: registered(Gauge::new(
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
    )),
    received: counter(
        "process_network_receive_bytes_total",
        "Number of bytes received by the process over the network.",
    ),
    sent: counter("process_network_transmit_bytes_total", "Number of bytes sent by the process over the network."),
});

/// Makes them exist, with 0.
pub fn register() {
    LazyLock::force(&PROCESS);
}

/// How many files the process may have open, as last read.
pub fn max_files() -> i64 {
    PROCESS.max_files.get()
}

/// Reads them anew. What the system does not say stays as it is.
pub fn read() {
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory itself is one of them while it is read.
        PROCESS.open_files.set(i64::try_from(open.count()).unwrap_or(i64::MAX) - 1);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(files) = soft_limit(&limits, "Max open files").and_then(|limit| limit.parse().ok()) {
        PROCESS.max_files.set(files);
    }
    if let Some(bytes) = soft_limit(&limits, "Max address space") {
        // As Go's library writes that there is none.
        PROCESS.max_memory.set(bytes.parse().unwrap_or(u64::MAX as f64));
    }
    // Of the network that the process is in, which in a container is its own.
    let traffic = fs::read_to_string("/proc/self/net/netstat").unwrap_or_default();
    for (name, counter) in [("InOctets", &PROCESS.received), ("OutOctets", &PROCESS.sent)] {
        let total = traffic_total(&traffic, name).unwrap_or_default();
        counter.inc_by(total.saturating_sub(counter.get()));
    }
}

/// The first value of a line of `/proc/self/limits`.
fn soft_limit<'a>(limits: &'a str, name: &str) -> Option<&'a str> {
    limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
}

/// A value of `IpExt` in `/proc/self/net/netstat`, where a line of names comes before a line of values.
fn traffic_total(netstat: &str, name: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    names.split_whitespace().zip(values.split_whitespace()).find(|(found, _)| *found == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_found_in_its_text() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024   4096  files\n\
                      Max address space         unlimited  unlimited  bytes\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some("1024"));
        assert_eq!(soft_limit(limits, "Max address space"), Some("unlimited"));
        let netstat = "TcpExt: InOctets\nTcpExt: 7\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 12 34\n";
        assert_eq!((traffic_total(netstat, "InOctets"), traffic_total(netstat, "OutOctets")), (Some(12), Some(34)));
        assert_eq!(traffic_total("", "InOctets"), None);
    }
}
