//! Outputs in pieces: each is computed in a buffer of the first-level cache and written out from there, by tasks that run
//! in parallel.

use super::isa::{Isa, run_on};
use super::pages::Huge;
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

/// An output, computed in pieces from the first to the last of a task.
pub(super) trait Pieces<T>: Sync {
    /// What goes from piece to piece, and is given back for each task.
    type State: Send;
    /// Before the first of `len` elements, number `start`.
    fn begin(&self, start: usize, len: usize) -> Self::State;
    /// Computes the elements from number `start` on. Must be `#[inline(always)]`.
    fn piece(&self, state: &mut Self::State, start: usize, out: &mut [T]);
}

/// An operation whose output is computed where it is wanted.
///
/// # Safety
/// [`Operation::compute`] writes all of its output.
#[must_use]
pub unsafe trait Operation<T: Pod + Send> {
    /// What it gives besides the output.
    type Rest;

    /// Elements of the output.
    fn elements(&self) -> usize;

    /// Writes the output, which has so many elements.
    ///
    /// # Panics
    /// If the machine has no `isa`.
    fn compute(&self, isa: Isa, out: &mut [MaybeUninit<T>]) -> Self::Rest;

    /// Computes it to a new vector.
    fn collect(&self) -> (Vec<T>, Self::Rest) {
        let len = self.elements();
        let mut values = with_capacity(len);
        let rest = self.compute(Isa::detect(), &mut values.spare_capacity_mut()[..len]);
        // SAFETY: `compute` has initialised the first `len` elements, which is within the capacity.
        unsafe { values.set_len(len) };
        (values, rest)
    }

    /// Computes it on `isa` to `out`.
    ///
    /// # Panics
    /// If `out` has another length, or the machine has no `isa`.
    fn fill(&self, isa: Isa, out: &mut [T]) -> Self::Rest {
        assert_eq!(out.len(), self.elements(), "an output of another size");
        // SAFETY: The two have the same layout, and `compute` writes nothing uninitialised.
        self.compute(isa, unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>]) })
    }
}

/// An empty vector with room for `len` elements. A large one gets huge pages where there are any: it is fresh from the
/// operating system, which takes far longer to hand over its 4-KiB pages than the kernels here take to fill them.
pub(super) fn with_capacity<T: Pod>(len: usize) -> Vec<T> {
    let values: Vec<T> = Vec::with_capacity(len);
    if streams(len * size_of::<T>()) {
        Huge::Fresh.ask(values.as_ptr().cast(), len * size_of::<T>() / size_of::<u32>());
    }
    values
}

/// Writes all of `out`.
pub(super) fn fill<T: Pod + Send, P: Pieces<T>>(
    isa: Isa, out: &mut [MaybeUninit<T>], pieces: &P,
) -> Vec<P::State> {
    let streams = streams(size_of_val(out));
    let run = |(index, out)| run_on!(isa, |isa| task(isa, pieces, index * TASK, out, streams));
    match out.len() {
        0 => vec![],
        1..=TASK => vec![run((0, out))],
        _ => out.par_chunks_mut(TASK).enumerate().map(run).collect(),
    }
}

/// Computes the elements of one task, those from number `start` on.
#[inline(always)]
fn task<T: Pod, P: Pieces<T>>(
    isa: Isa, pieces: &P, start: usize, out: &mut [MaybeUninit<T>], streams: bool,
) -> P::State {
    let mut state = pieces.begin(start, out.len());
    let end = start + out.len();
    let mut writer = Writer::<T, { PIECE + LINE }>::new(out, streams, isa);
    for start in (start..end).step_by(PIECE) {
        let len = PIECE.min(end - start);
        pieces.piece(&mut state, start, writer.room(len));
        writer.write(len);
    }
    writer.finish();
    state
}

/// Whether an output of `bytes` bytes bypasses the caches.
pub(super) const fn streams(bytes: usize) -> bool {
    bytes >= STREAM_FROM
}

/// Elements `start..start + len` of an input. Those a page further on are fetched meanwhile: the hardware fetches ahead
/// within a page only.
#[inline(always)]
pub(super) fn input<T>(from: &[T], start: usize, len: usize) -> &[T] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const AHEAD: usize = 4096;
        let ahead = from.as_ptr().wrapping_add(start).cast::<i8>().wrapping_add(AHEAD);
        for line in (0..len * size_of::<T>()).step_by(64) {
            // SAFETY: SSE is part of x86-64, and a prefetch may be of any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line)) };
        }
    }
    &from[start..start + len]
}

/// Elements of a cache line, all being of 32 bits.
pub(super) const LINE: usize = 16;

/// Writes an output from the first element to the last, up to `N - LINE` at a time, by way of a buffer.
///
/// What is written past the caches is whole cache lines: the elements of an unfinished one wait for the next ones.
pub(super) struct Writer<'a, T, const N: usize> {
    out: &'a mut [MaybeUninit<T>],
    streams: bool,
    isa: Isa,
    /// [`LINE`] elements that may be waiting, then room for the next ones.
    buffer: Buffer<T, N>,
    /// How many elements wait, just before those next ones.
    waiting: usize,
}

#[repr(align(64))]
struct Buffer<T, const N: usize>([T; N]);

impl<'a, T: Pod, const N: usize> Writer<'a, T, N> {
    #[inline(always)]
    pub fn new(out: &'a mut [MaybeUninit<T>], streams: bool, isa: Isa) -> Self {
        const { assert!(size_of::<T>() == 4) };
        Self { out, streams, isa, buffer: Buffer([T::zeroed(); N]), waiting: 0 }
    }

    /// Room for the next `len` elements, with any contents.
    #[inline(always)]
    pub fn room(&mut self, len: usize) -> &mut [T] {
        &mut self.buffer.0[LINE..LINE + len]
    }

    /// Writes the next `len` elements, which are in the [`room`](Self::room).
    #[inline(always)]
    pub fn write(&mut self, len: usize) {
        let end = LINE + len;
        if !self.streams {
            self.take(len).write_copy_of_slice(&self.buffer.0[LINE..end]);
            return;
        }
        let ready = self.waiting + len;
        let to_line = self.out.as_ptr().align_offset(64).min(ready);
        let lines = (ready - to_line) / LINE * LINE;
        let (head, lines) = (self.take(to_line), self.take(lines));
        let (first, rest) = self.buffer.0[LINE - self.waiting..end].split_at(head.len());
        head.write_copy_of_slice(first);
        stream(lines, &rest[..lines.len()], self.isa);
        self.waiting = rest.len() - lines.len();
        self.buffer.0.copy_within(end - self.waiting..end, LINE - self.waiting);
    }

    /// Writes what still waits. What was written past the caches then comes before whatever tells that this task is done.
    #[inline(always)]
    pub fn finish(mut self) {
        if self.streams {
            let waiting = self.waiting;
            self.take(waiting).write_copy_of_slice(&self.buffer.0[LINE - waiting..LINE]);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: SSE is part of x86-64.
            unsafe {
                std::arch::x86_64::_mm_sfence();
            }
        }
        assert!(self.out.is_empty(), "a part of the output has not been computed");
    }

    /// The next `len` elements of the output.
    #[inline(always)]
    fn take(&mut self, len: usize) -> &'a mut [MaybeUninit<T>] {
        self.out.split_off_mut(..len).expect("the output ends here")
    }
}

/// Copies whole cache lines past the caches. `out` must be aligned to them.
#[inline(always)]
fn stream<T: Pod>(out: &mut [MaybeUninit<T>], values: &[T], isa: Isa) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m512i, _mm_loadu_si128, _mm_stream_si128};
        use std::arch::x86_64::{_mm512_loadu_si512, _mm512_stream_si512};

        let bytes = size_of_val(values);
        assert!(
            out.as_ptr().cast::<__m512i>().is_aligned()
                && bytes == size_of_val(out)
                && bytes.is_multiple_of(64)
        );
        let (from, to) = (values.as_ptr(), out.as_mut_ptr());
        // SAFETY: Every access is within `values` or `out`, which have `bytes` bytes, a multiple of 64; `out` is aligned to
        // 64. SSE2 is part of x86-64, and AVX-512 is used by a caller that is compiled for it.
        unsafe {
            match isa {
                Isa::Avx512 => {
                    for at in (0..bytes).step_by(64) {
                        _mm512_stream_si512(
                            to.byte_add(at).cast(),
                            _mm512_loadu_si512(from.byte_add(at).cast()),
                        );
                    }
                }
                Isa::Avx2 | Isa::Portable => {
                    for at in (0..bytes).step_by(16) {
                        _mm_stream_si128(to.byte_add(at).cast(), _mm_loadu_si128(from.byte_add(at).cast()));
                    }
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        out.write_copy_of_slice(values);
    }
}
