//! Bounds that every kernel's verifier recognises.
//!
//! The verifier learns the range of a register from comparisons of that register with constants. LLVM combines two of
//! them into one subtraction and one unsigned comparison, from which Linux 6.12 and older learn nothing. Neither does
//! 6.1 learn from `len == 0` that `len` is at least 1 otherwise, and LLVM turns `len < 1` into that. So each comparison
//! here is separate, behind a barrier that is as opaque to LLVM as the verifier needs.

/// `len` if it is in `LEAST..=MOST`, with both bounds known to the verifier. `LEAST` is not 0.
#[inline(always)]
pub(crate) fn within<const LEAST: u64, const MOST: u64>(len: u64) -> Option<u32> {
    const { assert!(0 < LEAST && LEAST <= MOST && MOST <= u32::MAX as u64) };
    let len = barrier(len);
    if len > MOST {
        return None;
    }
    let len = barrier(len);
    (len >= LEAST).then_some(len as u32)
}

/// The smaller of `len` and `MOST`, which is a power of two. `len` must not be 0; a 0 becomes `MOST`.
#[inline(always)]
pub(crate) fn at_most<const MOST: u64>(len: u64) -> u32 {
    const { assert!(MOST.is_power_of_two() && MOST <= u32::MAX as u64) };
    let len = if len > MOST { MOST } else { len };
    let last = barrier(len.wrapping_sub(1)) & (MOST - 1);
    (barrier(last) + 1) as u32
}

/// The same value in the same register, of which LLVM no longer knows anything. There is an instruction because an
/// empty one has no place in BTF's table of lines.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn barrier(mut value: u64) -> u64 {
    // SAFETY: it copies a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags))
    };
    value
}

/// The same for analysis on the host.
#[cfg(not(target_arch = "bpf"))]
fn barrier(value: u64) -> u64 {
    core::hint::black_box(value)
}
