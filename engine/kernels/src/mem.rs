//! Memory for weights, KV and scratch: anonymous mappings, zero until touched, page-aligned.
//!
//! A mapping costs address space only until it is written, so the KV cache can be as large as the
//! budget allows without being resident; and a page is aligned enough for every vector load.

use std::io;
use std::ops::{Deref, DerefMut};

/// A fixed, zero-initialised region of `T`. Only for types where all-zero bytes are a value.
#[derive(Debug)]
pub struct Buffer<T: Zeroable> {
    ptr: *mut T,
    len: usize,
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

// SAFETY: the buffer owns its mapping; sharing it is sharing a slice of plain numbers.
unsafe impl<T: Zeroable + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroable + Sync> Sync for Buffer<T> {}

/// Mappings from here on ask for huge pages: below it they would waste more than they save.
const HUGE: usize = 8 << 20;

impl<T: Zeroable> Buffer<T> {
    /// Maps room for `len` values. Resident only where written.
    pub fn zeroed(len: usize) -> io::Result<Buffer<T>> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = len.checked_mul(size_of::<T>()).filter(|b| *b <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(too_large)?.max(1);
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
        Ok(Buffer { ptr: ptr.cast(), len })
    }

    /// As [`Buffer::zeroed`], for memory that will be written whole: asks for huge pages, which
    /// saves page faults while filling and TLB misses while streaming.
    pub fn dense(len: usize) -> io::Result<Buffer<T>> {
        let buffer = Self::zeroed(len)?;
        let bytes = len * size_of::<T>();
        if bytes >= HUGE {
            // SAFETY: the range is exactly our mapping; the call is advice and may fail freely.
            unsafe { libc::madvise(buffer.ptr.cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(buffer)
    }

    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Zeroable> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = (self.len * size_of::<T>()).max(1);
        // SAFETY: `ptr` is a mapping of `bytes` bytes made by `zeroed`, unmapped only here.
        unsafe { libc::munmap(self.ptr.cast(), bytes) };
    }
}

impl<T: Zeroable> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` values, initialised to zero, alive as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl<T: Zeroable> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
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
        let mut b = Buffer::<f32>::dense(3 << 20).unwrap();
        assert!(b.iter().step_by(4099).all(|x| *x == 0.0));
        b[12345] = 1.5;
        assert_eq!(b[12345], 1.5);
        assert_eq!(b.bytes(), 12 << 20);
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(Buffer::<f32>::zeroed(usize::MAX / 2).is_err());
        assert_eq!(Buffer::<u8>::zeroed(0).unwrap().len(), 0);
    }
}
