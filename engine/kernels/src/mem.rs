//! Memory for weights, KV and scratch: anonymous mappings, zero until touched, page-aligned.
//!
//! A mapping costs address space only until it is written, so the KV cache can be as large as the
//! budget allows without being resident; and a page is aligned enough for every vector load.
//!
//! What is streamed on every token asks for huge pages, all of it in one mapping: with pages of 4 KiB the
//! processor walks page tables as often as it reads weights, and its prefetching stops at every page.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A fixed, zero-initialised region of `T`. Only for types where all-zero bytes are a value.
#[derive(Debug)]
pub struct Buffer<T: Zeroable> {
    ptr: *mut T,
    len: usize,
    /// Holds the memory; no other buffer has this part of it.
    _mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    ptr: *mut u8,
    bytes: usize,
}

/// One mapping for several buffers that will be written whole.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    used: usize,
}

/// Types for which all-zero bytes are a valid value.
///
/// # Safety
/// Implementors promise exactly that, and that the type has no destructor.
pub unsafe trait Zeroable: Copy {}
// SAFETY: zero is a value of each of these.
unsafe impl Zeroable for u8 {}
// SAFETY: as above.
unsafe impl Zeroable for u16 {}
// SAFETY: as above.
unsafe impl Zeroable for u32 {}
// SAFETY: as above.
unsafe impl Zeroable for f32 {}

// SAFETY: the buffer owns its part of a mapping; sharing it is sharing a slice of plain numbers.
unsafe impl<T: Zeroable + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroable + Sync> Sync for Buffer<T> {}
// SAFETY: a mapping is an address and a size; its memory is only reached through buffers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

// === impl Mapping ===

impl Mapping {
    fn new(bytes: usize) -> io::Result<Mapping> {
        let bytes = bytes.max(1);
        // SAFETY: a fresh anonymous mapping aliases nothing; the result is checked below.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { ptr: ptr.cast(), bytes })
    }

    fn ask_for_huge_pages(&self) {
        // SAFETY: the range is exactly our mapping; the call is advice and may fail freely.
        unsafe { libc::madvise(self.ptr.cast(), self.bytes, libc::MADV_HUGEPAGE) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, unmapped only here, and no buffer is left.
        unsafe { libc::munmap(self.ptr.cast(), self.bytes) };
    }
}

// === impl Buffer ===

impl<T: Zeroable> Buffer<T> {
    /// Maps room for `len` values. Resident only where written.
    pub fn zeroed(len: usize) -> io::Result<Buffer<T>> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = len.checked_mul(size_of::<T>()).filter(|b| *b <= isize::MAX as usize);
        let mapping = Mapping::new(bytes.ok_or_else(too_large)?)?;
        Ok(Buffer { ptr: mapping.ptr.cast(), len, _mapping: Arc::new(mapping) })
    }

    /// As [`Buffer::zeroed`], in huge pages where the system has them: resident in steps of their size.
    pub fn huge(len: usize) -> io::Result<Buffer<T>> {
        let buffer = Self::zeroed(len)?;
        buffer._mapping.ask_for_huge_pages();
        Ok(buffer)
    }

    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Zeroable> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: our part of the mapping holds `len` values, initialised to zero, alive as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl<T: Zeroable> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

// === impl Arena ===

impl Arena {
    pub fn new(bytes: usize) -> io::Result<Arena> {
        let mapping = Mapping::new(bytes)?;
        mapping.ask_for_huge_pages();
        Ok(Arena { mapping: Arc::new(mapping), used: 0 })
    }

    /// The next `len` bytes. Who made the arena knew what would be taken.
    pub fn take(&mut self, len: usize) -> Buffer<u8> {
        assert!(len <= self.mapping.bytes - self.used, "the arena was made too small");
        // SAFETY: the offset is within the mapping, by the assertion.
        let ptr = unsafe { self.mapping.ptr.add(self.used) };
        self.used += len;
        Buffer { ptr, len, _mapping: Arc::clone(&self.mapping) }
    }
}

/// A pointer that parallel workers may write through, each to places no other touches.
///
/// The pool runs closures that share their captures; where they write disjoint parts of one
/// buffer, this carries the pointer, and the caller argues disjointness at each write.
pub struct Shared<T>(*mut T);

// Not derived: a derive would ask for `T: Copy`.
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: it is only a pointer; each dereference is unsafe and argued where it happens.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(slice: &mut [T]) -> Shared<T> {
        Shared(slice.as_mut_ptr())
    }

    pub fn ptr(self) -> *mut T {
        self.0
    }

    /// The part `at..at + len`.
    ///
    /// # Safety
    /// The range lies within the slice this was made of, that slice is still borrowed, and no
    /// other reference to any of the range is used while this one lives.
    pub unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller promises range, lifetime and exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zero_and_writable() {
        let mut b = Buffer::<f32>::huge(3 << 20).unwrap();
        assert!(b.iter().step_by(4099).all(|x| *x == 0.0));
        b[12345] = 1.5;
        assert_eq!(b[12345], 1.5);
        assert_eq!(b.bytes(), 12 << 20);
    }

    #[test]
    fn what_is_taken_from_an_arena_is_apart_and_outlives_it() {
        let mut arena = Arena::new(96).unwrap();
        let (mut a, mut b) = (arena.take(64), arena.take(32));
        drop(arena);
        a.fill(1);
        b.fill(2);
        assert!(a.iter().all(|x| *x == 1) && b.iter().all(|x| *x == 2));
        assert_eq!((a.len(), b.len()), (64, 32));
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(Buffer::<f32>::zeroed(usize::MAX / 2).is_err());
        assert_eq!(Buffer::<u8>::zeroed(0).unwrap().len(), 0);
    }
}
