//! What the machine allows: memory and cache bandwidth, and the peak rate of its multiply-add instructions.
//!
//! Rates are the best known loop's; `loops` holds the loops. Bytes are counted as the program names them: a copy
//! counts what it reads and what it writes, not what a cache fetches on its own to complete a line.

use crate::args::Args;
use crate::clock::seconds;
use crate::loops;
use crate::measure::median;
use crate::report::{Report, Row};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Names of the limits, in the order of [`rows`].
pub(crate) const NAMES: &[&str] = &[
    "limit_memory_read",
    "limit_memory_copy",
    "limit_memory_write",
    "limit_l2_read",
    "limit_l3_read",
    "limit_f32_fma",
    "limit_f32_fma_avx2",
    "limit_bf16_dot",
    "limit_i8_dot",
    "limit_i8_dot_avx2",
];

/// Bytes of each of the two halves of the arena; together twice what a "from memory" figure needs.
const HALF: usize = 512 << 20;

/// Reports the limits, for one thread and for all.
pub(crate) fn rows(args: &Args, report: &mut Report) {
    for name in NAMES.iter().filter(|n| args.wants(n)) {
        let mut counts = vec![1, args.threads];
        counts.dedup();
        for threads in counts {
            let measure = || match *name {
                "limit_memory_read" => Some((read(threads), "GB/s")),
                "limit_memory_copy" => Some((stream(1, HALF, threads), "GB/s")),
                "limit_memory_write" => Some((stream(0, HALF, threads), "GB/s")),
                "limit_l2_read" => Some((read_cached(cache_bytes(2, 1 << 20) / 2, threads), "GB/s")),
                "limit_l3_read" => Some((read_cached(l3_working_set(threads), threads), "GB/s")),
                "limit_f32_fma" => Some((Peak::F32.measure(threads), "GFLOP/s")),
                "limit_f32_fma_avx2" => peak(loops::F32_AVX2, threads).map(|v| (v, "GFLOP/s")),
                "limit_bf16_dot" => peak(loops::BF16_AVX512, threads).map(|v| (v, "GFLOP/s")),
                "limit_i8_dot" => Some((Peak::Int8.measure(threads), "GOP/s")),
                "limit_i8_dot_avx2" => peak(loops::INT8_AVX2, threads).map(|v| (v, "GOP/s")),
                _ => None,
            };
            report.progress(name);
            let Some((_, unit)) = measure() else { continue };
            let value = median((0..5).filter_map(|_| measure()).map(|(v, _)| v).collect());
            report.row(Row::of_limit(format!("{name} {threads}t"), value, unit));
        }
    }
}

/// The instruction whose peak bounds a product.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Peak {
    /// f32 operands: fused multiply-add.
    F32,
    /// bf16 operands: the dot instruction, or conversion and FMA where that is faster (Intel runs `vdpbf16ps` at a
    /// quarter of the rate that its name suggests).
    Bf16,
    /// 8-bit operands: the dot instruction; operations are multiplications and additions alike.
    Int8,
}

impl Peak {
    /// 10^9 operations a second, in a few milliseconds.
    pub(crate) fn measure(self, threads: usize) -> f64 {
        let candidates: &[loops::PeakLoop] = match self {
            Peak::F32 => &[loops::F32_AVX512, loops::F32_AVX2, loops::F32_PORTABLE],
            Peak::Bf16 => &[loops::BF16_AVX512, loops::F32_AVX512, loops::F32_AVX2, loops::F32_PORTABLE],
            Peak::Int8 => &[loops::INT8_AVX512, loops::INT8_AVX2, loops::INT8_PORTABLE],
        };
        static BEST: [OnceLock<loops::PeakLoop>; 3] = [const { OnceLock::new() }; 3];
        let best = BEST[self as usize].get_or_init(|| {
            let rate = |p: &loops::PeakLoop| peak(*p, 1).unwrap_or(0.0);
            let mut all: Vec<_> = candidates.iter().map(|p| (rate(p), *p)).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            all[0].1
        });
        peak(*best, threads).unwrap_or(f64::NAN)
    }
}

/// 10^9 operations a second of one loop, `None` where the machine lacks its instructions.
fn peak(p: loops::PeakLoop, threads: usize) -> Option<f64> {
    if !(p.available)() {
        return None;
    }
    const ROUNDS: u64 = 500_000;
    let rounds = ROUNDS / p.cost;
    let secs = on_threads(threads, |_| (p.run)(rounds));
    Some((p.operations)() * rounds as f64 * threads as f64 / secs / 1e9)
}

/// GB/s of reading from memory.
pub(crate) fn read(threads: usize) -> f64 {
    let arena = arena();
    // A window that moves on with every call stays cold even where the last cache holds hundreds of megabytes.
    const WINDOW: usize = 128 << 20;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = NEXT.fetch_add(WINDOW, Ordering::Relaxed) % (2 * HALF);
    let all = &arena.bytes()[start..start + WINDOW];
    static BEST: OnceLock<fn(&[u8])> = OnceLock::new();
    let best = BEST.get_or_init(|| {
        let time = |f: &fn(&[u8])| {
            median((0..3).map(|i| on_threads(1, |_| f(&arena.bytes()[i * WINDOW..][..WINDOW]))).collect())
        };
        loops::reads().into_iter().min_by(|a, b| time(a).total_cmp(&time(b))).expect("a loop for any machine")
    });
    let secs = on_threads(threads, |t| best(part(all, t, threads)));
    WINDOW as f64 / secs / 1e9
}

/// GB/s of reading a working set of `bytes` a thread over and over.
fn read_cached(bytes: usize, threads: usize) -> f64 {
    let bytes = (bytes & !4095).min(HALF / threads);
    let times = ((64 << 20) / bytes).max(1);
    let read = loops::reads()[0];
    let all = arena().bytes();
    let work = |t: usize| {
        for _ in 0..times {
            read(&all[t * bytes..(t + 1) * bytes]);
        }
    };
    on_threads(threads, work);
    let secs = on_threads(threads, work);
    (bytes * times * threads) as f64 / secs / 1e9
}

/// GB/s of reading `reads` arrays of `bytes` each from memory and writing one, no arithmetic; the better of plain and
/// of non-temporal stores. Every call reads other memory than the calls before, as the work that is measured does.
/// Arrays beyond the arena are measured on its size.
pub(crate) fn stream(reads: usize, bytes: usize, threads: usize) -> f64 {
    let (ins, out) = arena().halves();
    let each = (HALF / reads.max(1)).min(bytes) & !4095;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let once = |nt: bool| {
        let turns = (HALF / (reads * each).max(1)).max(1);
        let ins = &ins[NEXT.fetch_add(1, Ordering::Relaxed) % turns * reads * each..];
        let out = SendPtr(out);
        let secs = on_threads(threads, |t| {
            let (start, len) = part_range(each, t, threads);
            let srcs: Vec<&[u8]> = (0..reads).map(|r| &ins[r * each + start..][..len]).collect();
            // SAFETY: each thread writes its own range of the second half, which nobody reads meanwhile.
            let dst = unsafe { std::slice::from_raw_parts_mut(out.get().add(start), len) };
            loops::stream(&srcs, dst, nt);
        });
        ((reads + 1) * each) as f64 / secs / 1e9
    };
    let repeat = ((32 << 20) / ((reads + 1) * each)).clamp(1, 16);
    (0..repeat).map(|_| once(false).max(once(true))).fold(0.0, f64::max)
}

/// Keeps the calling thread on the `t`th processor of those that the process may use: two threads on one of them would
/// measure half of the machine.
fn pin(t: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: sets of processors are plain bits, and the calls get their size.
    unsafe {
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of_val(&all), &mut all) == 0 {
            let mine = (0..libc::CPU_SETSIZE as usize).filter(|&c| libc::CPU_ISSET(c, &all));
            if let Some(c) = mine.collect::<Vec<_>>().into_iter().cycle().nth(t) {
                let mut one: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(c, &mut one);
                libc::sched_setaffinity(0, size_of_val(&one), &one);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = t;
}

/// Seconds from the moment all threads are there to the moment the last is done.
fn on_threads(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    if threads == 1 {
        let start = seconds();
        work(0);
        return seconds() - start;
    }
    // Spinning, because waking a sleeper takes as long as a percent of these loops.
    let arrived = AtomicUsize::new(0);
    let spans: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let run = |t| {
            pin(t);
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < threads {
                std::hint::spin_loop();
            }
            let start = seconds();
            work(t);
            (start, seconds())
        };
        let handles: Vec<_> = (0..threads).map(|t| scope.spawn(move || run(t))).collect();
        handles.into_iter().map(|h| h.join().expect("limit loops do not panic")).collect()
    });
    let start = spans.iter().map(|s| s.0).fold(f64::INFINITY, f64::min);
    spans.iter().map(|s| s.1).fold(0.0, f64::max) - start
}

/// Start and length of part `t` of `n`, in whole pages.
fn part_range(len: usize, t: usize, n: usize) -> (usize, usize) {
    let pages = len / 4096;
    let (start, end) = (pages * t / n, pages * (t + 1) / n);
    (start * 4096, (end - start) * 4096)
}

fn part(all: &[u8], t: usize, n: usize) -> &[u8] {
    let (start, len) = part_range(all.len(), t, n);
    &all[start..start + len]
}

/// Bytes of the cache of `level`, from Linux's description of the first CPU.
fn cache_bytes(level: usize, default: usize) -> usize {
    let read = |file: String| std::fs::read_to_string(file).ok();
    (0..8)
        .find_map(|i| {
            let dir = format!("/sys/devices/system/cpu/cpu0/cache/index{i}");
            let same = read(format!("{dir}/level"))?.trim() == level.to_string();
            let data = read(format!("{dir}/type"))?.trim() != "Instruction";
            let size = read(format!("{dir}/size"))?;
            let kib: usize = size.trim().strip_suffix('K')?.parse().ok()?;
            (same && data).then_some(kib << 10)
        })
        .unwrap_or(default)
}

/// Beyond the second level, well within the third.
fn l3_working_set(threads: usize) -> usize {
    (cache_bytes(3, 16 << 20) / 4 / threads).min(4 * cache_bytes(2, 1 << 20))
}

/// One gibibyte, mapped once, on huge pages where the system gives them, every page touched.
struct Arena(*mut u8);

// SAFETY: the memory lives as long as the process; `stream` is the only writer and runs on the main thread's order.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

#[derive(Clone, Copy)]
struct SendPtr(*mut u8);
// SAFETY: the threads that share it write disjoint ranges.
unsafe impl Send for SendPtr {}
// SAFETY: as above.
unsafe impl Sync for SendPtr {}

impl SendPtr {
    fn get(self) -> *mut u8 {
        self.0
    }
}

impl Arena {
    fn bytes(&self) -> &[u8] {
        // SAFETY: 2 * HALF bytes (and a window beyond) are mapped, initialised and never freed; writes to the second
        // half happen only inside `stream`, which runs alone.
        unsafe { std::slice::from_raw_parts(self.0, 2 * HALF + (128 << 20)) }
    }

    fn halves(&self) -> (&[u8], *mut u8) {
        (&self.bytes()[..HALF], self.0.wrapping_add(HALF))
    }
}

fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        const HUGE: usize = 2 << 20;
        let len = 2 * HALF + (128 << 20);
        let mut memory: Vec<u8> = Vec::with_capacity(len + HUGE);
        let base = memory.as_mut_ptr();
        let start = base.wrapping_add(base.align_offset(HUGE));
        #[cfg(target_os = "linux")]
        // SAFETY: advice on a range of our own allocation; refusal changes nothing but speed.
        unsafe {
            libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
        }
        // SAFETY: the range lies in the allocation. Not zero, so that no page is the shared zero page.
        unsafe { std::ptr::write_bytes(start, 1, len) };
        std::mem::forget(memory);
        Arena(start)
    })
}
