//! The status codes of gRPC, for the table of failures, which knows no tonic.

/// gRPC status codes, by their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// Cancelled by the caller.
    Canceled = 1,
    /// Also what etcd sends for two texts that its client maps back by text.
    Unknown = 2,
    /// The request is wrong in itself.
    InvalidArgument = 3,
    /// The caller's deadline passed.
    DeadlineExceeded = 4,
    /// Something named does not exist.
    NotFound = 5,
    /// The caller may not do it.
    PermissionDenied = 7,
    /// A bound was hit.
    ResourceExhausted = 8,
    /// The state forbids it.
    FailedPrecondition = 9,
    /// A revision out of range.
    OutOfRange = 11,
    /// Not served here.
    Unimplemented = 12,
    /// A fault of this process.
    Internal = 13,
    /// Try again, perhaps elsewhere.
    Unavailable = 14,
    /// Data is lost or corrupt.
    DataLoss = 15,
    /// The caller's credentials are not good.
    Unauthenticated = 16,
}

impl Code {
    /// The code of a number from the wire; what is not in the list is `Unknown`.
    pub const fn from_wire(number: i32) -> Self {
        match number {
            1 => Code::Canceled,
            3 => Code::InvalidArgument,
            4 => Code::DeadlineExceeded,
            5 => Code::NotFound,
            7 => Code::PermissionDenied,
            8 => Code::ResourceExhausted,
            9 => Code::FailedPrecondition,
            11 => Code::OutOfRange,
            12 => Code::Unimplemented,
            13 => Code::Internal,
            14 => Code::Unavailable,
            15 => Code::DataLoss,
            16 => Code::Unauthenticated,
            _ => Code::Unknown,
        }
    }
}
