//! Compiles the proto files without `protoc` and generates messages, clients and servers into `OUT_DIR`.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use prost::Message;

/// Include root of every proto file.
const ROOT: &str = "proto";

/// Every file of the contract, relative to [`ROOT`].
const FILES: [&str; 8] = [
    "etcd/mvccpb/kv.proto",
    "etcd/authpb/auth.proto",
    "etcd/etcdserverpb/rpc.proto",
    "etcd/v3lockpb/lock.proto",
    "etcd/v3electionpb/election.proto",
    "balsa/log.proto",
    "balsa/node.proto",
    "balsa/peer.proto",
];

/// What is spoken to others, and no part of the contract that reflection shows.
const ELSEWHERE: [&str; 1] = ["opentelemetry/trace.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={ROOT}");
    let set = protox::compile(FILES, [ROOT])?;

    // Reflection needs names and numbers, not comments.
    let mut bare = set.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    fs::write(Path::new(&out).join("descriptor_set.bin"), bare.encode_to_vec())?;

    tonic_prost_build::configure().bytes(".").compile_fds(set)?;
    tonic_prost_build::configure().bytes(".").compile_fds(protox::compile(ELSEWHERE, [ROOT])?)?;
    Ok(())
}
