//! A layer's tar archive over another layer: applied to a tree, and written as an initrd.
use bridgehead::provision::image::fuzzing::layers;
use tar::Header;

pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    seal(&mut bytes);
    let middle = bytes.len() / 2 / 512 * 512;
    layers(&[&bytes]);
    layers(&[&bytes[..middle], &bytes[middle..]]);
}

/// Corrects the checksum of every header, because mutations would get no further otherwise.
fn seal(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + 512) {
        // The end consists of zero blocks, which have no checksum.
        if block.iter().any(|b| *b != 0) {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
            let size = header.entry_size().unwrap_or(0).min(1 << 20) as usize;
            at += size.div_ceil(512) * 512;
        }
        at += 512;
    }
}
