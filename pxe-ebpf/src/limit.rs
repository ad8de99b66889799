//! The limit of the hooks, for `cargo xtask bench limit`: programs that turn an ACK into a DATA of the next block's
//! size, send it back, and do nothing else. They look up no session, copy no file contents (the kernel itself fills the
//! added bytes of a frame with zeros), update no UDP checksum and count nothing.
//!
//! A separate object, which is not part of the appliance.
#![no_std]
#![no_main]

use core::ptr::read_volatile;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::{bpf_redirect, bpf_skb_change_tail, bpf_xdp_adjust_tail};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Ethernet, IPv4, UDP, and a DATA's opcode and block number.
const HEAD_LEN: usize = 14 + 20 + 8 + 4;
/// Offset of opcode and block number.
const TFTP: usize = HEAD_LEN - 4;

/// Written by the loader: the transfer's port at the server, its block size, the number of its last block and that
/// block's length.
#[unsafe(no_mangle)]
static PORT: u16 = 0;
#[unsafe(no_mangle)]
static BLKSIZE: u16 = 0;
#[unsafe(no_mangle)]
static LAST: u16 = 0;
#[unsafe(no_mangle)]
static LAST_LEN: u16 = 0;

/// The minimum of work at tc.
#[classifier]
pub(crate) fn limit_tc(ctx: TcContext) -> i32 {
    let Some(number) = head(ctx.data(), ctx.data_end()).and_then(ack) else { return TC_ACT_UNSPEC };
    let Some(len) = len_after(number) else { return TC_ACT_SHOT };
    // SAFETY: a plain helper call; no pointer into the frame is held.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, (HEAD_LEN + len as usize) as u32, 0) } != 0 {
        return TC_ACT_SHOT;
    }
    let Some(head) = head(ctx.data(), ctx.data_end()) else { return TC_ACT_SHOT };
    turn(head, number, len);
    // SAFETY: the context outlives the program's run, and the call only notes where the frame goes.
    unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 }
}

/// The minimum of work at XDP.
#[xdp(frags)]
pub(crate) fn limit_xdp(ctx: XdpContext) -> u32 {
    let Some(number) = head(ctx.data(), ctx.data_end()).and_then(ack) else { return xdp_action::XDP_PASS };
    let Some(len) = len_after(number) else { return xdp_action::XDP_DROP };
    let by = (HEAD_LEN + len as usize) as i32 - (ctx.data_end() - ctx.data()) as i32;
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, by) } != 0 {
        return xdp_action::XDP_DROP;
    }
    let Some(head) = head(ctx.data(), ctx.data_end()) else { return xdp_action::XDP_DROP };
    turn(head, number, len);
    xdp_action::XDP_TX
}

/// The ACK that every frame of a test run is reset to, with two bytes of padding to whole words, and the next one's
/// block number.
#[map]
static ACK: Array<[u64; 6]> = Array::with_max_entries(1, 0);
#[map]
static NUMBER: Array<u32> = Array::with_max_entries(1, 0);
/// The program under measurement.
#[map]
static MEASURED: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Turns a frame into the next ACK, and passes it to the program under measurement.
///
/// A test run with live frames recycles its pages. It restores their length, but not their contents (`reset_ctx` in the
/// kernel's net/bpf/test_run.c): the last DATA would be the next request.
#[xdp(frags)]
pub(crate) fn limit_ack(ctx: XdpContext) -> u32 {
    let (Some(ack), Some(number)) = (ACK.get(0), NUMBER.get_ptr_mut(0)) else { return xdp_action::XDP_DROP };
    if ctx.data() + size_of_val(ack) > ctx.data_end() {
        return xdp_action::XDP_DROP;
    }
    let frame = ctx.data() as *mut u64;
    // SAFETY: the frame is as long as checked, words need no alignment here, and one test run at a
    // time, on one CPU, has the number.
    unsafe {
        for (at, word) in ack.iter().enumerate() {
            frame.add(at).write_unaligned(*word);
        }
        let field = frame.cast::<u8>().add(TFTP + 2).cast::<u16>();
        field.write_unaligned((*number as u16).to_be());
        *number += 1;
        MEASURED.tail_call(&ctx, 0);
    }
    xdp_action::XDP_DROP
}

/// Frames with a whole block that arrived at the far end.
#[map]
static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The far end: only counts.
#[xdp]
pub(crate) fn limit_sink(ctx: XdpContext) -> u32 {
    // SAFETY: a static that the loader wrote.
    let blksize = unsafe { read_volatile(&raw const BLKSIZE) };
    if ctx.data_end() - ctx.data() == HEAD_LEN + blksize as usize
        && let Some(arrived) = ARRIVED.get_ptr_mut(0)
    {
        // SAFETY: the slot is this CPU's.
        unsafe { *arrived += 1 }
    }
    xdp_action::XDP_DROP
}

/// The headers, if they are contiguous in the frame.
#[inline(always)]
fn head<'a>(data: usize, data_end: usize) -> Option<&'a mut [u8; HEAD_LEN]> {
    // SAFETY: checked, as the verifier wants it, too.
    (data + HEAD_LEN <= data_end).then(|| unsafe { &mut *(data as *mut [u8; HEAD_LEN]) })
}

/// The block number of an ACK of the transfer.
#[inline(always)]
fn ack(head: &mut [u8; HEAD_LEN]) -> Option<u16> {
    // SAFETY: a static that the loader wrote.
    let [a, b] = unsafe { read_volatile(&raw const PORT) }.to_be_bytes();
    let ours = head[12..15] == [8, 0, 0x45] && head[23] == 17 && head[36..38] == [a, b];
    (ours && head[TFTP..TFTP + 2] == [0, 4]).then(|| u16::from_be_bytes([head[TFTP + 2], head[TFTP + 3]]))
}

/// The length of the next block.
#[inline(always)]
fn len_after(number: u16) -> Option<u16> {
    // SAFETY: statics that the loader wrote.
    unsafe {
        let last = read_volatile(&raw const LAST);
        if number >= last {
            return None;
        }
        Some(read_volatile(if number + 1 == last { &raw const LAST_LEN } else { &raw const BLKSIZE }))
    }
}

/// Turns the ACK of block `number` into the next DATA, as far as its receiver checks: addresses and ports are
/// exchanged, lengths and the IPv4 checksum are correct.
#[inline(always)]
fn turn(head: &mut [u8; HEAD_LEN], number: u16, len: u16) {
    swap(head, 0, 6, 6);
    swap(head, 26, 30, 4);
    swap(head, 34, 36, 2);
    let old = u16::from_be_bytes([head[16], head[17]]);
    let new = (HEAD_LEN - 14) as u16 + len;
    [head[16], head[17]] = new.to_be_bytes();
    // RFC 1624: the checksum changes by the difference of the one word.
    let sum = u32::from(!u16::from_be_bytes([head[24], head[25]])) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    [head[24], head[25]] = (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes();
    [head[38], head[39]] = (12 + len).to_be_bytes();
    head[TFTP + 1] = 3;
    [head[TFTP + 2], head[TFTP + 3]] = (number + 1).to_be_bytes();
}

#[inline(always)]
fn swap(head: &mut [u8; HEAD_LEN], a: usize, b: usize, len: usize) {
    let mut i = 0;
    while i < len {
        (head[a + i], head[b + i]) = (head[b + i], head[a + i]);
        i += 1;
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
