//! Multi-version key space: revisions, ranges, transactions, compaction, watch. etcd's semantics, word for word.
