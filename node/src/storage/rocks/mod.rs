//! The engines on RocksDB: `RocksKeySpace` (no WAL, atomic flush) and `RocksLog` (synced WAL).
