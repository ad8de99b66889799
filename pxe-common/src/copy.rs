//! Copies between places that lie anywhere, as DHCP options do.
//!
//! A compiler for BPF may not assume that the processor reads words from any address, and copies what is not
//! aligned byte by byte. In a map the kernel's verifier lets words be anywhere where the processor does
//! (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS: x86-64, arm64); on the stack never. Hence these, which are for maps.

/// Copies `from` over `to`. In a kernel program both lie in maps.
#[inline(always)]
pub(crate) fn copy<const N: usize>(to: &mut [u8; N], from: &[u8; N]) {
    #[cfg(target_arch = "bpf")]
    bpf::copy(to, from);
    #[cfg(not(target_arch = "bpf"))]
    {
        *to = *from;
    }
}

/// Fills `to` with zeros. In a kernel program it lies in a map.
#[inline(always)]
pub(crate) fn clear<const N: usize>(to: &mut [u8; N]) {
    #[cfg(target_arch = "bpf")]
    bpf::clear(to);
    #[cfg(not(target_arch = "bpf"))]
    {
        *to = [0; N];
    }
}

#[cfg(target_arch = "bpf")]
mod bpf {
    use core::arch::asm;

    #[inline(always)]
    pub(super) fn copy<const N: usize>(to: &mut [u8; N], from: &[u8; N]) {
        let (to, from) = (to.as_mut_ptr(), from.as_ptr());
        let mut at = 0;
        while at + 32 <= N {
            // SAFETY: the four words lie in both arrays.
            unsafe {
                asm!(
                    "{word} = *(u64 *)({from} + 0)",
                    "*(u64 *)({to} + 0) = {word}",
                    "{word} = *(u64 *)({from} + 8)",
                    "*(u64 *)({to} + 8) = {word}",
                    "{word} = *(u64 *)({from} + 16)",
                    "*(u64 *)({to} + 16) = {word}",
                    "{word} = *(u64 *)({from} + 24)",
                    "*(u64 *)({to} + 24) = {word}",
                    word = out(reg) _,
                    from = in(reg) from.add(at),
                    to = in(reg) to.add(at),
                    options(nostack),
                );
            }
            at += 32;
        }
        while at + 8 <= N {
            // SAFETY: the word lies in both arrays.
            unsafe {
                asm!(
                    "{word} = *(u64 *)({from} + 0)",
                    "*(u64 *)({to} + 0) = {word}",
                    word = out(reg) _,
                    from = in(reg) from.add(at),
                    to = in(reg) to.add(at),
                    options(nostack),
                );
            }
            at += 8;
        }
        while at < N {
            // SAFETY: the byte lies in both arrays.
            unsafe { *to.add(at) = *from.add(at) };
            at += 1;
        }
    }

    #[inline(always)]
    pub(super) fn clear<const N: usize>(to: &mut [u8; N]) {
        let (to, zero) = (to.as_mut_ptr(), 0_u64);
        let mut at = 0;
        while at + 32 <= N {
            // SAFETY: the four words lie in the array.
            unsafe {
                asm!(
                    "*(u64 *)({to} + 0) = {zero}",
                    "*(u64 *)({to} + 8) = {zero}",
                    "*(u64 *)({to} + 16) = {zero}",
                    "*(u64 *)({to} + 24) = {zero}",
                    zero = in(reg) zero,
                    to = in(reg) to.add(at),
                    options(nostack),
                );
            }
            at += 32;
        }
        while at + 8 <= N {
            // SAFETY: the word lies in the array.
            unsafe {
                asm!("*(u64 *)({to} + 0) = {zero}", zero = in(reg) zero, to = in(reg) to.add(at), options(nostack));
            }
            at += 8;
        }
        while at < N {
            // SAFETY: the byte lies in the array.
            unsafe { *to.add(at) = 0 };
            at += 1;
        }
    }
}
