//! Snapshot directories: a manifest, checksummed files, staging and verification.
