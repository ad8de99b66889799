//! Bounds that every kernel's verifier sees.
//!
//! The verifier learns the range of a register from comparisons of that very register with constants. What
//! LLVM makes of two of them, one subtraction and one unsigned comparison, tells Linux 6.12 and older nothing;
//! nor does `len == 0` tell 6.1 that `len` is at least 1 otherwise, and LLVM turns `len < 1` into it. So each
//! comparison here stands alone, behind a barrier that LLVM looks through no more than the verifier needs it to.

/// `len` if it lies in `LEAST..=MOST`, with both bounds known to the verifier. `LEAST` is not 0.
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

/// The smaller of `len` and `MOST`, which is a power of two. `len` is not 0; a 0 comes out as `MOST`.
#[inline(always)]
pub(crate) fn at_most<const MOST: u64>(len: u64) -> u32 {
    const { assert!(MOST.is_power_of_two() && MOST <= u32::MAX as u64) };
    let len = if len > MOST { MOST } else { len };
    let last = barrier(len.wrapping_sub(1)) & (MOST - 1);
    (barrier(last) + 1) as u32
}

/// The same value in the same register, of which LLVM knows nothing any more. The instruction stands there
/// because an empty one has no place in BTF's table of lines.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn barrier(mut value: u64) -> u64 {
    // SAFETY: it copies a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags))
    };
    value
}

/// The same for whoever only looks at the code.
#[cfg(not(target_arch = "bpf"))]
fn barrier(value: u64) -> u64 {
    core::hint::black_box(value)
}
