//! Compression of archives and layers: everything that `docker load` accepts.

use std::io::{self, BufRead as _, BufReader, Read};

use liblzma::stream::{CONCATENATED, Stream};

/// Memory limit for the xz decoder, like zstd's own limit (a window of 128 MiB): `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 129 << 20;

/// Detected by the first bytes, as Docker does: media types are often wrong, and `docker save` states none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Compression {
    pub(super) fn of(reader: &mut BufReader<impl Read>) -> io::Result<Self> {
        Ok(match reader.fill_buf()? {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, which pzstd and seekable formats begin with (RFC 8878, 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        })
    }

    /// The uncompressed bytes. A file may consist of several frames or members in a row, because parallel compressors
    /// write them.
    pub(super) fn reader<'a, R: Read + 'a>(self, reader: BufReader<R>) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(reader),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(reader)?),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
            Self::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(reader, stream))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Compressed by the programs that people use.
    fn packed(command: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .inspect_err(|error| println!("skipped: {}: {error}", command[0]))
            .ok()?;
        let mut stdin = child.stdin.take().unwrap();
        let bytes = bytes.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "{command:?}");
        Some(output.stdout)
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        // The smallest buffer that a slow file might fill.
        let mut reader = BufReader::with_capacity(64, bytes);
        let mut out = Vec::new();
        Compression::of(&mut reader)?.reader(reader)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_every_compressor_writes_is_read() {
        let plain: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let (first, second) = plain.split_at(plain.len() / 3);
        let skippable = |last: u8| [&[0x50 | last, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"meta"].concat();
        assert_eq!(unpacked(&plain).unwrap(), plain);
        for command in [
            &["gzip", "-c"][..],
            &["zstd", "-qc"],
            &["pzstd", "-qc", "-p", "2"],
            &["bzip2", "-c"],
            &["xz", "-c"],
            &["xz", "-9", "-c", "--check=sha256"],
            &["xz", "-c", "--block-size=65536", "--x86", "--lzma2"],
        ] {
            let (Some(whole), Some(one), Some(two)) =
                (packed(command, &plain), packed(command, first), packed(command, second))
            else {
                continue;
            };
            assert_eq!(unpacked(&whole).unwrap(), plain, "{command:?}");
            assert_eq!(unpacked(&[one, two].concat()).unwrap(), plain, "{command:?}, in two pieces");
            if command[0].contains("zstd") {
                assert_eq!(unpacked(&[skippable(0), whole.clone()].concat()).unwrap(), plain, "{command:?}");
                assert_eq!(unpacked(&[whole.clone(), skippable(15)].concat()).unwrap(), plain, "{command:?}");
            }
            assert!(unpacked(&whole[..whole.len() / 2]).is_err(), "{command:?}, cut short");
        }
    }

    #[test]
    fn a_decoder_takes_no_more_memory_than_it_may() {
        // A dictionary of 1.5 GiB, for which the compressor may lack memory.
        let Some(greedy) =
            packed(&["xz", "-c", "--memlimit-compress=0", "--lzma2=dict=1536MiB,mf=hc4,mode=fast"], b"few")
        else {
            return;
        };
        let error = unpacked(&greedy).unwrap_err().to_string();
        assert!(error.contains("memory"), "{error}");
    }
}
