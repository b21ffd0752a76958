//! An idle pool sleeps. A file of its own, because it measures the CPU time of the whole process.
#![cfg(target_os = "linux")]

use lapis_cpu::pool;
use std::time::Duration;

/// Nanoseconds that all threads of this process have spent on a core.
fn cpu_time() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc is mounted");
    tasks
        .filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("schedstat")).ok())
        .filter_map(|s| s.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn an_idle_pool_uses_no_cpu() {
    pool::with_threads(4, || {
        for _ in 0..1000 {
            pool::run(8, &|i| {
                std::hint::black_box(i);
            });
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    let before = cpu_time();
    std::thread::sleep(Duration::from_millis(300));
    let used = cpu_time() - before;
    assert!(used < 5_000_000, "{used} ns of CPU time in 300 ms of idling");
}
