//! Work in blocks: outputs are computed block by block in a buffer that stays in the first-level cache, in parallel,
//! and written out from there.

use bytemuck::Pod;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements of a block. Fixed, so that results do not depend on the number of threads.
pub(super) const BLOCK: usize = 4096;

/// Outputs of this many bytes or more bypass the caches: they would not fit anyway, and a line that is written
/// through a cache is first read from memory.
const STREAM_FROM: usize = 32 << 20;

/// Makes a vector of `len` elements from what `f` writes to the blocks; `f` gets the index of a block's first element and
/// an initialised buffer of its length. Returns also what the calls of `f` gave, in the order of the blocks.
pub(super) fn collect<T: Pod + Send, R: Send>(
    len: usize, f: impl Fn(usize, &mut [T]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let mut values = Vec::with_capacity(len);
    let results = fill_uninit(&mut values.spare_capacity_mut()[..len], f);
    // SAFETY: `fill_uninit` has initialised the first `len` elements, which is within the capacity.
    unsafe { values.set_len(len) };
    (values, results)
}

/// [`collect`] into a slice that exists.
pub(super) fn fill<T: Pod + Send, R: Send>(out: &mut [T], f: impl Fn(usize, &mut [T]) -> R + Sync) -> Vec<R> {
    fill_uninit(as_uninit(out), f)
}

/// Writes all of `out`.
fn fill_uninit<T: Pod + Send, R: Send>(
    out: &mut [MaybeUninit<T>], f: impl Fn(usize, &mut [T]) -> R + Sync,
) -> Vec<R> {
    let streams = streams(size_of_val(out));
    let block = |buffer: &mut Vec<T>, (index, out): (usize, &mut [MaybeUninit<T>])| {
        let buffer = &mut buffer[..out.len()];
        let result = f(index * BLOCK, buffer);
        write(out, buffer, streams);
        result
    };
    let buffer = || vec![T::zeroed(); BLOCK];
    match out.len() {
        0 => vec![],
        1..=BLOCK => vec![block(&mut buffer(), (0, out))],
        _ => out.par_chunks_mut(BLOCK).enumerate().map_init(buffer, block).collect(),
    }
}

/// Whether an output of `bytes` bytes bypasses the caches.
pub(super) const fn streams(bytes: usize) -> bool {
    bytes >= STREAM_FROM
}

pub(super) fn as_uninit<T: Pod>(out: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: The two have the same layout, and this module, the only user, writes nothing uninitialised.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>]) }
}

/// Copies `values` to `out`, past the caches if `streams`.
pub(super) fn write<T: Pod>(out: &mut [MaybeUninit<T>], values: &[T], streams: bool) {
    #[cfg(target_arch = "x86_64")]
    if streams {
        return stream(out, values);
    }
    let _ = streams;
    out.write_copy_of_slice(values);
}

/// A copy with non-temporal stores for the whole cache lines of `out`.
#[cfg(target_arch = "x86_64")]
fn stream<T: Pod>(out: &mut [MaybeUninit<T>], values: &[T]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// A cache line.
    #[repr(align(64))]
    struct Line([MaybeUninit<__m128i>; 4]);

    assert_eq!(out.len(), values.len());
    // SAFETY: Any bytes, initialised or not, are a valid `Line`; nothing uninitialised is written through it.
    let (head, lines, tail) = unsafe { out.align_to_mut::<Line>() };
    let (first, rest) = values.split_at(head.len());
    let (middle, last) = rest.split_at(rest.len() - tail.len());
    head.write_copy_of_slice(first);
    tail.write_copy_of_slice(last);
    let (from, _) = bytemuck::cast_slice::<T, u8>(middle).as_chunks::<64>();
    assert_eq!(lines.len(), from.len());
    for (line, from) in lines.iter_mut().zip(from) {
        for (part, from) in line.0.iter_mut().zip(from.as_chunks::<16>().0) {
            // SAFETY: 16 bytes are read from an array of 16 bytes and written to 16 bytes that are ours, aligned to 16.
            unsafe { _mm_stream_si128(part.as_mut_ptr(), _mm_loadu_si128(from.as_ptr().cast())) };
        }
    }
    // Before this function returns, and so before anyone can read `out`.
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() };
}
