//! Outputs in pieces: each is computed in a buffer of the first-level cache and written out from there, by tasks that run
//! in parallel.

use super::isa::{Isa, Kernel};
use bytemuck::Pod;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements that one task computes. Fixed, so that results do not depend on the number of threads.
pub(super) const TASK: usize = 1 << 16;

/// Elements of a piece: small enough that reading the next ones goes on while these are written.
pub(super) const PIECE: usize = 256;

/// Outputs of this many bytes or more bypass the caches: they would not fit anyway, and a line that is written
/// through a cache is first read from memory.
const STREAM_FROM: usize = 32 << 20;

/// How far ahead, in bytes, inputs are fetched. The hardware stops at the end of every page.
const AHEAD: usize = 4096;

/// An output, computed in pieces from the first to the last of a task.
pub(super) trait Pieces<T>: Sync {
    /// What goes from piece to piece, and is given back for each task.
    type State: Send;
    /// Before the first of `len` elements, number `start`.
    fn begin(&self, start: usize, len: usize) -> Self::State;
    /// Computes the elements from number `start` on. Must be `#[inline(always)]`.
    fn piece(&self, state: &mut Self::State, start: usize, out: &mut [T]);
}

/// Makes a vector of `len` elements. Gives also the final states, in the order of the tasks.
pub(super) fn collect<T: Pod + Send, P: Pieces<T>>(
    isa: Isa, len: usize, pieces: &P,
) -> (Vec<T>, Vec<P::State>) {
    let mut values = Vec::with_capacity(len);
    let states = fill_uninit(isa, &mut values.spare_capacity_mut()[..len], pieces);
    // SAFETY: `fill_uninit` has initialised the first `len` elements, which is within the capacity.
    unsafe { values.set_len(len) };
    (values, states)
}

/// [`collect`] into a slice that exists.
pub(super) fn fill<T: Pod + Send, P: Pieces<T>>(isa: Isa, out: &mut [T], pieces: &P) -> Vec<P::State> {
    fill_uninit(isa, as_uninit(out), pieces)
}

/// Writes all of `out`.
fn fill_uninit<T: Pod + Send, P: Pieces<T>>(
    isa: Isa, out: &mut [MaybeUninit<T>], pieces: &P,
) -> Vec<P::State> {
    let streams = streams(size_of_val(out));
    let run = |(index, out)| isa.run(Task { pieces, start: index * TASK, out, streams });
    match out.len() {
        0 => vec![],
        1..=TASK => vec![run((0, out))],
        _ => out.par_chunks_mut(TASK).enumerate().map(run).collect(),
    }
}

struct Task<'a, T, P> {
    pieces: &'a P,
    start: usize,
    out: &'a mut [MaybeUninit<T>],
    streams: bool,
}

impl<T: Pod, P: Pieces<T>> Kernel for Task<'_, T, P> {
    type Output = P::State;

    #[inline(always)]
    fn run(self) -> P::State {
        let Self { pieces, start, out, streams } = self;
        let mut buffer = [T::zeroed(); PIECE];
        let mut state = pieces.begin(start, out.len());
        for (index, out) in out.chunks_mut(PIECE).enumerate() {
            let buffer = &mut buffer[..out.len()];
            pieces.piece(&mut state, start + index * PIECE, buffer);
            write(out, buffer, streams);
        }
        fence();
        state
    }
}

/// Whether an output of `bytes` bytes bypasses the caches.
pub(super) const fn streams(bytes: usize) -> bool {
    bytes >= STREAM_FROM
}

pub(super) fn as_uninit<T: Pod>(out: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: The two have the same layout, and this module and `packed`, the only users, write nothing uninitialised.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>]) }
}

/// Elements `start..start + len` of an input. Those [`AHEAD`] of them are fetched on the way.
#[inline(always)]
pub(super) fn input<T>(from: &[T], start: usize, len: usize) -> &[T] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let ahead = from.as_ptr().wrapping_add(start).cast::<i8>().wrapping_add(AHEAD);
        for line in (0..len * size_of::<T>()).step_by(64) {
            // SAFETY: SSE is part of x86-64, and a prefetch may be of any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line)) };
        }
    }
    &from[start..start + len]
}

/// Copies `values` to `out`, past the caches if `streams`. A [`fence`] must follow before others may see it.
#[inline(always)]
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
#[inline(always)]
fn stream<T: Pod>(out: &mut [MaybeUninit<T>], values: &[T]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

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
}

/// Ends a task that wrote past the caches: what it wrote comes before whatever tells that it is done.
#[inline(always)]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
