//! What is set and read of the machine: threads, the allocator's way with large blocks, memory taken.

use anyhow::Result;

/// Keeps freed memory instead of handing it back to the system. A tensor operation allocates its result anew, and
/// glibc fetches every block above 128 KiB from the kernel page by page, which costs more than many of
/// the operations.
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

/// Bounds the threads at work to `threads`, whatever they work on. To be called once, before the first
/// tensor operation.
///
/// They are the threads of rayon's global pool, of which the calling one becomes a member: an outsider would wait for
/// the pool's results, but load and put together images besides. Candle's matmul, our own operations and the loader
/// share the pool. Candle would start `threads - 1` more of its own for element-wise operations
/// (`CANDLE_NUM_THREADS`), which spin between two of them; they are left out.
pub fn use_threads(threads: usize) -> Result<()> {
    // SAFETY: no other thread of this process runs yet; they are started by the first tensor operation.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        std::env::set_var("CANDLE_NUM_THREADS", "1");
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .build_global()?;
    Ok(())
}

/// The largest resident size of this process so far in bytes; Linux tells.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Bytes that may be asked for without driving others out: what the system has left, or the group that this process was put in;
/// Linux tells.
pub fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let left = read("/proc/meminfo").and_then(|text| {
        let line = text
            .lines()
            .find(|line| line.starts_with("MemAvailable:"))?;
        Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
    });
    let group = "/sys/fs/cgroup/memory";
    let own = number(&format!("{group}.max"))
        .zip(number(&format!("{group}.current")))
        .map(|(most, now)| most.saturating_sub(now));
    left.into_iter().chain(own).min()
}
