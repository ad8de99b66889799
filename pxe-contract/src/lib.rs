//! What appliance, node and simulator send one another, defined once: every document, word and path that one of them
//! writes and another one reads. The loader will be the fourth.
//!
//! Data types only. There is no I/O, no clock and no network here (`no_std` ensures that), and no decisions: the writing
//! side fills a type in, the reading side gets the same type. serde defines the documents' JSON; each side chooses its
//! JSON library. Two helpers that both sides need are here, too: [`hex`] and [`backoff`].
//!
//! | written by | what | read by |
//! | --- | --- | --- |
//! | appliance | [`settings`], in words of a [`cmdline`]; [`paths`] in grub.cfg and iPXE scripts | node, loader, simulator |
//! | appliance | [`image`]: `/image.json`; [`blocks`] behind a SquashFS | node |
//! | appliance | [`ticket`], [`storage`], [`rescue`]: the files of a machine's own initrd | node |
//! | node | [`ticket`], [`report`], [`facts`], [`console`], [`rescue`], [`engine`], [`storage`], [`round`]: requests | appliance |
//! | appliance | answers to these; [`failure`] when there is none | node |
//! | appliance | [`symbols`]: packets of a multicast round | node |
//! | appliance | [`stage`]: how far a machine is | people, simulator |
//! | set-up, appliance | [`modules`]: what is in stage 1 | node |
//!
//! # Versions
//!
//! Two sides of different versions meet every day. A node goes on running while its appliance is upgraded, so a newer
//! appliance gets requests of an older node. An image that was added before an upgrade has the older pxe-init in its
//! stage 1, so an older node reads what a newer appliance writes. After a downgrade it is the other way round. Hence
//! the rules for changing anything here:
//!
//! 1. **What a released version wrote stays readable for ever**, and keeps its meaning. A new field is optional
//!    (`#[serde(default)]`, an `Option`): when absent, it means what was so before there was such a field. No field
//!    that a released reader needs is left out, renamed or given another meaning; that takes a new field, or a new
//!    path.
//! 2. **Unknown fields and words are ignored**, so that a newer side may say more than an older one understands. Only
//!    what may be ignored can be added in that way.
//! 3. **Where ignoring would do harm, what is unknown is an error.** That holds for [`storage::Storage`], which says
//!    what is written to disks: half of it would be worse than nothing. It holds for values everywhere: an unknown
//!    `on-exit`, an unknown stage of a report.
//! 4. **An error has an explanation**, and names the field, or the word and what was expected in its place. A node that
//!    can't read a document says that the two sides are of different versions; an appliance that can't read a request
//!    answers 400, or 404 where it knows no such path, with a [`failure::ErrorDocument`] whose words the node repeats on
//!    its console.
//! 5. **New documents get new paths.** An older appliance answers 404, and the node goes on without, or fails and says
//!    why.
//!
//! `golden/VERSION/` has the documents of each released version, as its own writers wrote them. The crate's tests read
//! every version's, and write the present one's byte by byte (`tests/golden.rs` says how a version is recorded).
//! docs/decisions/018-contract.md has the reasons.
#![no_std]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod backoff;
pub mod blocks;
pub mod cmdline;
pub mod console;
pub mod engine;
pub mod facts;
pub mod failure;
pub mod hex;
pub mod image;
pub mod modules;
pub mod paths;
pub mod report;
pub mod rescue;
pub mod round;
pub mod settings;
pub mod stage;
pub mod storage;
pub mod symbols;
mod text;
pub mod ticket;
