//! Copies between unaligned addresses, such as DHCP options.
//!
//! A compiler for BPF may not assume that the processor reads words from any address, so it copies unaligned data byte
//! by byte. In map values the kernel's verifier allows unaligned words if the processor does
//! (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS: x86-64, arm64), on the stack never. These functions are for map values.

/// Copies `from` to `to`. In a kernel program both are in maps.
#[inline(always)]
pub(crate) fn copy<const N: usize>(to: &mut [u8; N], from: &[u8; N]) {
    #[cfg(target_arch = "bpf")]
    bpf::copy(to, from);
    #[cfg(not(target_arch = "bpf"))]
    {
        *to = *from;
    }
}

/// Fills `to` with zeros. In a kernel program it is in a map.
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
        // SAFETY: `each` stays inside both arrays.
        each::<N>(
            |at| unsafe {
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
            },
            // SAFETY: as above.
            |at| unsafe {
                asm!(
                    "{word} = *(u64 *)({from} + 0)",
                    "*(u64 *)({to} + 0) = {word}",
                    word = out(reg) _,
                    from = in(reg) from.add(at),
                    to = in(reg) to.add(at),
                    options(nostack),
                );
            },
            // SAFETY: as above.
            |at| unsafe { *to.add(at) = *from.add(at) },
        );
    }

    #[inline(always)]
    pub(super) fn clear<const N: usize>(to: &mut [u8; N]) {
        let (to, zero) = (to.as_mut_ptr(), 0_u64);
        // SAFETY: `each` stays inside the array.
        each::<N>(
            |at| unsafe {
                asm!(
                    "*(u64 *)({to} + 0) = {zero}",
                    "*(u64 *)({to} + 8) = {zero}",
                    "*(u64 *)({to} + 16) = {zero}",
                    "*(u64 *)({to} + 24) = {zero}",
                    zero = in(reg) zero,
                    to = in(reg) to.add(at),
                    options(nostack),
                );
            },
            // SAFETY: as above.
            |at| unsafe {
                asm!("*(u64 *)({to} + 0) = {zero}", zero = in(reg) zero, to = in(reg) to.add(at), options(nostack));
            },
            // SAFETY: as above.
            |at| unsafe { *to.add(at) = 0 },
        );
    }

    /// Covers `N` bytes: four words at a time, then single words, then the remaining bytes.
    #[inline(always)]
    fn each<const N: usize>(words: impl Fn(usize), word: impl Fn(usize), byte: impl Fn(usize)) {
        let mut at = 0;
        while at + 32 <= N {
            words(at);
            at += 32;
        }
        while at + 8 <= N {
            word(at);
            at += 8;
        }
        while at < N {
            byte(at);
            at += 1;
        }
    }
}
