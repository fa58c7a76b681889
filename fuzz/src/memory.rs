//! Counts what each thread allocates, so that a target can limit what an input may cost.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Far beyond what any target allows. Ends the process before the machine suffers.
const MOST: isize = 256 << 20;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Bytes that `work` held at most at a time, beyond what was held before; this thread's only.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    begin();
    let out = work();
    (out, usize::try_from(PEAK.get()).unwrap_or(0))
}

/// Counts from zero. What one thread allocates and another frees would add up otherwise.
pub fn begin() {
    LIVE.set(0);
    PEAK.set(0);
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(change: isize) {
    let live = LIVE.get() + change;
    if live > MOST {
        let text = b"more than 256 MiB were allocated\n";
        // SAFETY: both may be called at any time.
        unsafe {
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::abort();
        }
    }
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

/// A layout has at most `isize::MAX` bytes.
fn signed(bytes: usize) -> isize {
    bytes as isize
}

// SAFETY: everything is the system allocator's; counting allocates nothing and cannot unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(signed(size) - signed(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}
