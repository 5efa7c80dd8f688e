//! Threads, the allocator, resident memory.

use anyhow::{Context, Result};

/// Keeps freed memory instead of handing it back to the system, as the `candlewick` command does.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed_blocks() {
    // SAFETY: mallopt sets two numbers of the allocator; it is called first in main, before any other thread.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Other systems' allocators keep large blocks anyway.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_blocks() {}

/// Bounds the threads of every tensor operation: rayon's, and those that candle starts itself, which read the
/// environment. To be called once, before the first tensor operation.
pub fn use_threads(threads: usize) -> Result<()> {
    // SAFETY: no other thread of this process runs yet; they are started by the first tensor operation.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        std::env::set_var("CANDLE_NUM_THREADS", threads.to_string());
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()?;
    Ok(())
}

/// Peak of resident memory in bytes since the start or the last reset; Linux alone tells.
pub fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let kib: Option<u64> = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok());
    Ok(kib.context("/proc/self/status has no VmHWM")? * 1024)
}

/// Makes the peak start over from what is resident now. Memory that was freed but kept by the allocator stays
/// resident, so a peak is that of everything done since the process began to need so much.
pub fn reset_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")
}
