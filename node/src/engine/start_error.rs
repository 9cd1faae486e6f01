//! Why a node cannot start or become a member, with the code that its process ends with.

use balsa_proto::node::ExitCode;

use crate::domain::apply::ApplyError;
use crate::storage::StorageError;

/// Why a node cannot start or become a member. Each has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The disk failed.
    #[error("disk: {0}")]
    Disk(String),
    /// A file is damaged in a way that the log cannot repair.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The disk belongs to another cluster or member.
    #[error("wrong disk: {0}")]
    WrongDisk(String),
    /// The disk is empty but the member has started before.
    #[error("disk lost: {0}")]
    DiskLost(String),
    /// The cluster has removed this member.
    #[error("member removed: {0}")]
    MemberRemoved(String),
    /// The flags cannot work together.
    #[error("configuration: {0}")]
    Config(String),
}

impl StartError {
    /// The code that the process ends with.
    pub fn exit_code(&self) -> i32 {
        match self {
            StartError::Disk(_) => ExitCode::ExitDiskFailed as i32,
            StartError::Corrupt(_) => ExitCode::ExitCorrupt as i32,
            StartError::WrongDisk(_) => ExitCode::ExitWrongDisk as i32,
            StartError::DiskLost(_) => ExitCode::ExitDiskLost as i32,
            StartError::MemberRemoved(_) => ExitCode::ExitMemberRemoved as i32,
            StartError::Config(_) => 1,
        }
    }

    /// The name under which logs, metrics and the operator know it.
    pub fn reason(&self) -> &'static str {
        match self {
            StartError::Disk(_) => "DiskFailed",
            StartError::Corrupt(_) => "Corrupt",
            StartError::WrongDisk(_) => "WrongDisk",
            StartError::DiskLost(_) => "DiskLost",
            StartError::MemberRemoved(_) => "MemberRemoved",
            StartError::Config(_) => "InvalidConfig",
        }
    }
}

impl From<StorageError> for StartError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Failed { .. } => StartError::Disk(error.to_string()),
            StorageError::Corrupt { .. } => StartError::Corrupt(error.to_string()),
        }
    }
}

impl From<ApplyError> for StartError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Storage(error) => error.into(),
            other => StartError::Corrupt(other.to_string()),
        }
    }
}
