//! How the kernel schedules the calling thread: the one place of the node, beside RocksDB, that no safe crate covers (decision 0086).
#![allow(unsafe_code, reason = "neither the standard library nor a crate that is well kept makes these two calls")]

use std::{io, mem, ptr};

pub(super) use libc::sched_attr as SchedAttr;

/// What holds for the calling thread. Without a slice in it the kernel knows none.
pub(super) fn get() -> io::Result<SchedAttr> {
    let mut attributes = mem::MaybeUninit::<SchedAttr>::zeroed();
    let size = mem::size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes to the structure, which lives as long as the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has integers only, for which all bytes are valid: zeros, or what the kernel wrote.
    Ok(unsafe { attributes.assume_init() })
}

/// Has it hold for the calling thread, and for all threads that it will make.
pub(super) fn set(attributes: SchedAttr) -> io::Result<()> {
    let attributes = SchedAttr { size: mem::size_of::<SchedAttr>() as u32, ..attributes };
    // SAFETY: the kernel reads `size` bytes of the structure, which is as long and lives as long as the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, ptr::from_ref(&attributes), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
