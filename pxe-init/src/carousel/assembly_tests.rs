use proptest::prelude::*;
use raptorq::SourceBlockEncoder;

use super::*;

/// A store that remembers what was written, and from which nothing else can be read.
pub(crate) struct Memory {
    pub(crate) bytes: Vec<Option<u8>>,
}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        Self { bytes: vec![None; len] }
    }

    pub(crate) fn content(&self) -> Option<Vec<u8>> {
        self.bytes.iter().copied().collect()
    }
}

impl Store for Memory {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        for (place, byte) in self.bytes[at as usize..].iter_mut().zip(bytes) {
            *place = Some(*byte);
        }
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        for (byte, place) in bytes.iter_mut().zip(&self.bytes[at as usize..]) {
            *byte = place.expect("only what was written is read");
        }
        Ok(())
    }
}

/// The symbols of a block as a sender has them: its bytes, and this many repairs.
fn symbols(image: &[u8], geometry: Geometry, block: u32, repairs: u32) -> Vec<(u32, u32, Vec<u8>)> {
    let range = geometry.block(block);
    let mut bytes = image[range.start as usize..range.end as usize].to_vec();
    bytes.resize(geometry.symbols(block) as usize * usize::from(geometry.symbol_size()), 0);
    let config = ObjectTransmissionInformation::new(bytes.len() as u64, geometry.symbol_size(), 1, 1, 8);
    let encoder = SourceBlockEncoder::new(0, &config, &bytes);
    let packets = encoder.source_packets().into_iter().chain(encoder.repair_packets(0, repairs));
    packets.map(|p| (block, p.payload_id().encoding_symbol_id(), p.data().to_vec())).collect()
}

fn image(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    crate::fetch::sha256(bytes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is lost, and in whatever order the rest arrives: enough symbols complete the image;
    /// otherwise it is known what is missing, and fetching that over HTTP completes it.
    #[test]
    fn any_symbols_that_are_enough_bring_the_image(
        len in 1usize..40_000,
        placed in 0usize..5_000,
        lost in 0u32..60,
        order: u64,
    ) {
        let image = image(len);
        let placed = placed.min(len - 1);
        let geometry = Geometry::new(len as u64, 64, 50).unwrap();
        let mut store = Memory::new(len);
        store.write_at(&image[..placed], 0).unwrap();
        let mut assembly = Assembly::new(geometry, placed as u64);
        let mut all: Vec<_> = (0..geometry.blocks()).flat_map(|b| symbols(&image, geometry, b, 30)).collect();
        let mut state = order | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for n in (1..all.len()).rev() {
            all.swap(n, (random() % (n as u64 + 1)) as usize);
        }
        for (block, symbol, bytes) in &all {
            if random() % 100 >= u64::from(lost) {
                assembly.add(*block, *symbol, bytes, &mut store).unwrap();
                prop_assert!(!assembly.add(*block, *symbol, bytes, &mut store).unwrap(), "twice");
            }
        }
        prop_assert_eq!(assembly.complete(), assembly.lacks().is_empty());
        prop_assert_eq!(assembly.complete(), assembly.missing().is_empty());
        if lost == 0 {
            prop_assert!(assembly.complete());
        }
        for range in assembly.missing() {
            store.write_at(&image[range.start as usize..range.end as usize], range.start).unwrap();
        }
        prop_assert!(store.content().as_ref() == Some(&image));
        prop_assert_eq!(assembly.sha256(&store).unwrap(), sha256(&image));
    }

    /// Forged or damaged packets can only make the image wrong.
    #[test]
    fn nonsense_is_survived(
        packets in proptest::collection::vec((0u32..12, 0u32..70, 60usize..66), 0..400),
    ) {
        let geometry = Geometry::new(30_000, 64, 50).unwrap();
        let mut store = Memory::new(30_000);
        let mut assembly = Assembly::new(geometry, 0);
        for (block, symbol, len) in packets {
            assembly.add(block, symbol, &vec![symbol as u8; len], &mut store).unwrap();
            prop_assert!(assembly.repairs <= REPAIRS_MAX);
        }
    }
}

#[test]
fn a_late_joiner_says_in_one_line_what_it_lacks() {
    let geometry = Geometry::new(64 * 50 * 1000, 64, 50).unwrap();
    let mut assembly = Assembly::new(geometry, 0);
    let mut store = Memory::new(64 * 50 * 1000);
    assembly.add(700, 3, &[0; 64], &mut store).unwrap();
    let lack = |first, last, symbols| Lack { first, last, symbols };
    assert_eq!(assembly.lacks(), [lack(0, 699, 50), lack(700, 700, 49), lack(701, 999, 50)]);
}

#[test]
fn repairs_are_dropped_rather_than_fill_the_memory() {
    let geometry = Geometry::new(1 << 30, 1408, 50_000).unwrap();
    let mut assembly = Assembly::new(geometry, 0);
    let mut store = Memory::new(0);
    let kept = (50_000..60_000).filter(|n| assembly.add(0, *n, &[0; 1408], &mut store).unwrap()).count();
    assert_eq!(kept, REPAIRS_MAX / 1408);
}
