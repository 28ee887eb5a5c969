//! How glibc's allocator is set up for this process.

/// Keeps freed memory from staying with the process.
///
/// glibc gives threads heaps of their own, up to eight for each core, and each keeps what was freed in it.
/// Backups, restores and WAL run on threads that come and go; after a few of each the process held four
/// times what it used (measured: 398 MiB instead of 98 MiB). Two heaps, and buffers of a MiB that go back to
/// the system at once, cost nothing that was measured. To be called before the first thread is made.
pub fn set_up_allocator() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        for (what, value) in [
            (M_ARENA_MAX, 2),
            (M_MMAP_THRESHOLD, 2 << 20),
            (M_TRIM_THRESHOLD, 4 << 20),
        ] {
            #[expect(unsafe_code, reason = "mallopt has no safe form; it only sets numbers")]
            // SAFETY: mallopt takes two integers and touches no memory of ours; no other thread runs yet.
            let _accepted = unsafe { mallopt(what, value) };
        }
    }
}
