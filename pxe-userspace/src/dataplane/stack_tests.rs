//! The programs' stack depth, read from the object: the kernel here may accept more than others.

use std::collections::HashMap;

use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SectionKind,
    SymbolKind,
};
use pxe_common::map::{Part, name};
use pxe_common::verdict::Hook;

use super::load::OBJECT;

/// The stack that a chain of calls may use (`MAX_BPF_STACK`), each frame rounded up as kernels before 6.8 do in
/// `check_max_stack_depth`; and the longest chain.
const STACK: u64 = 512 / 2;
const ROUNDED_TO: u64 = 32;
const FRAMES: usize = 8;

/// A function's place.
type Place = (SectionIndex, u64);

struct Function {
    name: String,
    frame: u64,
    calls: Vec<Place>,
}

#[test]
fn no_chain_of_calls_is_deeper_than_an_older_kernel_allows() {
    if OBJECT.is_empty() {
        eprintln!("skipped: the kernel programs are not built");
        return;
    }
    let functions = functions();
    let reached = [
        (name::part(Hook::Xdp, Part::Tftp), "tell"),
        (name::part(Hook::Xdp, Part::Dhcp), "next_option"),
        (name::part(Hook::Tc, Part::Tftp), "next_block"),
        (name::part(Hook::Tc, Part::Dhcp), "next_option"),
    ];
    for (entry, inner) in reached {
        let at = *functions.iter().find(|(_, f)| f.name == entry).expect("the program is there").0;
        let chains = chains(&functions, at);
        assert!(chains.iter().flatten().any(|f| f.name.contains(inner)), "{entry} reaches {inner}");
        let depth = |chain: &[&Function]| -> u64 {
            chain.iter().map(|f| f.frame.max(1).next_multiple_of(ROUNDED_TO)).sum()
        };
        let deepest = chains.iter().map(|chain| depth(chain)).max().unwrap_or_default();
        eprintln!("{entry}: {deepest} of {STACK} bytes of stack");
        for chain in chains {
            let depth = depth(&chain);
            let frames: Vec<_> = chain.iter().map(|f| format!("{}: {}", f.name, f.frame)).collect();
            assert!(depth <= STACK && chain.len() <= FRAMES, "{depth} bytes: {frames:#?}");
        }
    }
}

/// Every chain of calls from a function. Callbacks count as calls, as they do for the verifier.
fn chains(functions: &HashMap<Place, Function>, from: Place) -> Vec<Vec<&Function>> {
    let function = &functions[&from];
    let deeper = function.calls.iter().flat_map(|call| chains(functions, *call));
    let all = deeper.map(|chain| [vec![function], chain].concat());
    std::iter::once(vec![function]).chain(all).collect()
}

fn functions() -> HashMap<Place, Function> {
    let object = object::File::parse(OBJECT).unwrap();
    let code = |index| object.section_by_index(index).is_ok_and(|s| s.kind() == SectionKind::Text);
    let mut functions = HashMap::new();
    for symbol in object.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0) {
        let section = object.section_by_index(symbol.section_index().unwrap()).unwrap();
        let targets: HashMap<u64, Place> = section
            .relocations()
            .filter_map(|(at, relocation)| {
                let RelocationTarget::Symbol(index) = relocation.target() else { return None };
                let target = object.symbol_by_index(index).unwrap();
                let section = target.section_index().filter(|section| code(*section))?;
                Some((at, (section, target.address())))
            })
            .collect();
        let bytes = section.data().unwrap();
        let mut function = Function { name: symbol.name().unwrap().to_owned(), frame: 0, calls: Vec::new() };
        // Registers that point to the frame's end, until an offset is added.
        let mut frame_ends = [false; 16];
        for at in (symbol.address()..symbol.address() + symbol.size()).step_by(8) {
            let [op, registers, low, high, a, b, c, d] = bytes[at as usize..][..8].try_into().unwrap();
            let (to, from) = (usize::from(registers & 15), usize::from(registers >> 4));
            let (offset, imm) = (i16::from_le_bytes([low, high]), i32::from_le_bytes([a, b, c, d]));
            let below = match op & 7 {
                LDX if from == FRAME => -i64::from(offset),
                ST | STX if to == FRAME => -i64::from(offset),
                _ if op == ADD64_IMM && frame_ends[to] => -i64::from(imm),
                _ => 0,
            };
            function.frame = function.frame.max(below.try_into().unwrap_or(0));
            frame_ends[to] = op == MOV64_REG && from == FRAME;
            match (op, targets.get(&at)) {
                (CALL, Some((section, address))) if from == PSEUDO_CALL => {
                    function.calls.push((*section, address.wrapping_add_signed((i64::from(imm) + 1) * 8)));
                }
                (CALL, None) if from == PSEUDO_CALL => {
                    function.calls.push((section.index(), at.wrapping_add_signed((i64::from(imm) + 1) * 8)));
                }
                (LD_IMM64, Some((section, address))) => {
                    function.calls.push((*section, address.wrapping_add_signed(imm.into())));
                }
                _ => {}
            }
        }
        functions.insert((section.index(), symbol.address()), function);
    }
    functions
}

// RFC 9669, BPF's instruction set: classes, opcodes, the frame pointer.
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
const LD_IMM64: u8 = 0x18;
const ADD64_IMM: u8 = 0x07;
const MOV64_REG: u8 = 0xbf;
const CALL: u8 = 0x85;
const PSEUDO_CALL: usize = 1;
const FRAME: usize = 10;
