//! Whole nodes as real processes on loopback: what a user of etcd's flags gets, with kills, restarts, full and lost disks.
//! Nothing here knows the inside of a node; it speaks etcd's API and looks at exit codes.

mod cluster;
mod etcd;
mod etcdctl;
mod linearizable;
mod proxy;
mod writer;

mod admission;
mod alerts;
mod auth;
mod auth_leases;
mod beside;
mod bounds;
mod damage;
mod drain;
mod etcd3gw;
mod failpoints;
mod faults;
mod flags;
mod full_disk;
mod gateway;
mod gone;
mod kv;
mod large;
mod lease;
mod lock;
mod maintenance;
mod membership;
mod metrics;
mod metrics_of_ours;
mod moved;
mod nemesis;
mod peer_http;
mod quorum;
mod reflection;
mod restart;
mod settings;
mod shifting;
mod snapshot;
mod sockets;
mod tls;
mod trace;
mod tracing;
mod unread;
mod wire;
