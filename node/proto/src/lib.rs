//! The wire contract: etcd's v3 client API by package, name and number, and Balsa's own node, peer and log messages.
//!
//! Owns the proto files under `proto/`, the code generated from them, and the golden traces under `trace/`. It must not
//! know what any message does: behaviour lives in the crates that use it.
//!
//! `bytes` fields are [`bytes::Bytes`], so a received key or value is a view of its frame. Names are prost's:
//! `ID` is `id`, `isLearner` is `is_learner`, `peerURLs` is `peer_ur_ls`. The wire name of an enum value is its
//! `as_str_name()`, for [`node::Reason`] the name that metrics, conditions and events use.

/// Generated code, in a tree that mirrors the packages because prost refers to other packages by relative path.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, rustdoc::all)]
mod generated {
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    pub mod otlp {
        tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
    }
    pub mod balsa {
        pub mod log {
            pub mod v1 {
                tonic::include_proto!("balsa.log.v1");
            }
        }
        pub mod node {
            pub mod v1 {
                tonic::include_proto!("balsa.node.v1");
            }
        }
        pub mod peer {
            pub mod v1 {
                tonic::include_proto!("balsa.peer.v1");
            }
        }
    }
}

#[doc(inline)]
pub use generated::balsa::{log::v1 as log, node::v1 as node, peer::v1 as peer};
#[doc(inline)]
pub use generated::{authpb, etcdserverpb, mvccpb, otlp, v3electionpb, v3lockpb};

/// The encoded `google.protobuf.FileDescriptorSet` of every file of the contract, without comments, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));

pub mod raw;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod trace;
