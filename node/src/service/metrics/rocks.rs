//! What RocksDB says of itself, by database (`key_space`, `log`) and column family.

use prometheus::IntGaugeVec;

use super::{Maker, clamp};
use crate::storage::rocks::Numbers;

/// The gauges of RocksDB.
pub(super) struct Rocks {
    level0_files: IntGaugeVec,
    pending_compaction: IntGaugeVec,
    memtables: IntGaugeVec,
    sst: IntGaugeVec,
    block_cache: IntGaugeVec,
    delayed_write_rate: IntGaugeVec,
    write_stopped: IntGaugeVec,
    flushes: IntGaugeVec,
    compactions: IntGaugeVec,
    background_errors: IntGaugeVec,
}

impl Rocks {
    pub(super) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        let of_table = |name, help| make.gauges2(name, help, ["database", "table"]);
        let of_database = |name, help| make.gauges(name, help, "database");
        Ok(Self {
            level0_files: of_table("balsa_rocksdb_level0_files", "Flushed table files that wait to be merged.")?,
            pending_compaction: of_table(
                "balsa_rocksdb_pending_compaction_bytes",
                "Bytes that compactions have to rewrite, as estimated.",
            )?,
            memtables: of_table("balsa_rocksdb_memtable_bytes", "Bytes of memtables in memory.")?,
            sst: of_table("balsa_rocksdb_sst_bytes", "Bytes of the table files in use.")?,
            block_cache: of_database("balsa_rocksdb_block_cache_bytes", "Bytes in the block cache.")?,
            delayed_write_rate: of_database(
                "balsa_rocksdb_delayed_write_rate_bytes_per_second",
                "What writers are slowed to while flushes or compactions lag; 0 while they are not.",
            )?,
            write_stopped: of_database(
                "balsa_rocksdb_write_stopped",
                "Whether writers wait until flushes or compactions have made room.",
            )?,
            flushes: of_database("balsa_rocksdb_running_flushes", "Flushes that run.")?,
            compactions: of_database("balsa_rocksdb_running_compactions", "Compactions that run.")?,
            background_errors: of_database(
                "balsa_rocksdb_background_errors",
                "Flushes and compactions that failed since the database was opened.",
            )?,
        })
    }

    pub(super) fn set(&self, databases: &[(&'static str, Numbers)]) {
        for (database, numbers) in databases {
            for (gauges, value) in [
                (&self.block_cache, numbers.block_cache_bytes),
                (&self.delayed_write_rate, numbers.delayed_write_rate),
                (&self.write_stopped, u64::from(numbers.is_write_stopped)),
                (&self.flushes, numbers.running_flushes),
                (&self.compactions, numbers.running_compactions),
                (&self.background_errors, numbers.background_errors),
            ] {
                gauges.with_label_values(&[database]).set(clamp(value));
            }
            for table in &numbers.tables {
                for (gauges, value) in [
                    (&self.level0_files, table.level0_files),
                    (&self.pending_compaction, table.pending_compaction_bytes),
                    (&self.memtables, table.memtable_bytes),
                    (&self.sst, table.sst_bytes),
                ] {
                    gauges.with_label_values(&[*database, table.table]).set(clamp(value));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;
    use crate::storage::rocks::TableNumbers;

    #[test]
    fn every_number_has_its_own_gauge() {
        let registry = Registry::new();
        let rocks = Rocks::new(&Maker(&registry)).unwrap();
        let table = TableNumbers {
            table: "live",
            level0_files: 1,
            pending_compaction_bytes: 2,
            memtable_bytes: 3,
            sst_bytes: 4,
        };
        let numbers = Numbers {
            tables: vec![table],
            block_cache_bytes: 5,
            delayed_write_rate: 6,
            is_write_stopped: true,
            running_flushes: 7,
            running_compactions: 8,
            background_errors: 9,
        };
        rocks.set(&[("key_space", numbers), ("log", Numbers::default())]);
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"balsa_rocksdb_level0_files{database="key_space",table="live"} 1"#,
            r#"balsa_rocksdb_pending_compaction_bytes{database="key_space",table="live"} 2"#,
            r#"balsa_rocksdb_memtable_bytes{database="key_space",table="live"} 3"#,
            r#"balsa_rocksdb_sst_bytes{database="key_space",table="live"} 4"#,
            r#"balsa_rocksdb_block_cache_bytes{database="key_space"} 5"#,
            r#"balsa_rocksdb_delayed_write_rate_bytes_per_second{database="key_space"} 6"#,
            r#"balsa_rocksdb_write_stopped{database="key_space"} 1"#,
            r#"balsa_rocksdb_running_flushes{database="key_space"} 7"#,
            r#"balsa_rocksdb_running_compactions{database="key_space"} 8"#,
            r#"balsa_rocksdb_background_errors{database="key_space"} 9"#,
            r#"balsa_rocksdb_write_stopped{database="log"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
