//! Tar archives, byte by byte.

const BLOCK: usize = 512;

/// A builder of layers. An entry's path, owner and the like are those of [`Entry`].
#[derive(Default)]
pub struct Layer(Vec<u8>);

/// A header's fields.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub path: &'a [u8],
    /// POSIX's `typeflag`.
    pub kind: u8,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub mtime: i64,
    pub link: &'a [u8],
    pub device: (u32, u32),
    /// The size in the header; if `None`, the contents' length.
    pub size: Option<u64>,
}

impl<'a> Entry<'a> {
    /// An entry owned by root, with times in 2023.
    pub fn new(kind: u8, path: &'a (impl AsRef<[u8]> + ?Sized), mode: u32) -> Self {
        let path = path.as_ref();
        Self { path, kind, mode, uid: 0, gid: 0, mtime: 1_700_000_000, link: b"", device: (0, 0), size: None }
    }
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, path: &str, contents: &[u8]) -> Self {
        self.entry(&Entry::new(b'0', path, 0o644), contents)
    }

    pub fn directory(self, path: &str) -> Self {
        self.entry(&Entry::new(b'5', path, 0o755), b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(&Entry { link: target.as_bytes(), ..Entry::new(b'2', path, 0o777) }, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(&Entry { link: target.as_bytes(), ..Entry::new(b'1', path, 0o644) }, b"")
    }

    /// Any entry, in ustar format; numbers that don't fit in octal digits are in base 256, as GNU tar writes them.
    pub fn entry(self, entry: &Entry<'_>, contents: &[u8]) -> Self {
        self.raw(&header(entry, contents.len()), contents)
    }

    /// A given header, whose checksum is set here.
    pub fn raw(mut self, header: &[u8; BLOCK], contents: &[u8]) -> Self {
        self.0.extend(summed(header));
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// PAX records for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            // The length includes its own digits.
            let rest = key.len() + value.len() + 3;
            let length = (1..6).map(|digits| rest + digits).find(|l| l.to_string().len() + rest == *l);
            text.extend(format!("{} {key}=", length.expect("a record of less than a megabyte")).into_bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        self.entry(&Entry::new(b'x', "PaxHeaders/x", 0o644), &text)
    }

    /// Bytes as they are.
    pub fn append(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// The whole archive, with the two blocks that end it.
    pub fn bytes(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

/// A ustar header without its checksum.
pub(super) fn header(entry: &Entry<'_>, contents: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..entry.path.len()].copy_from_slice(entry.path);
    number(&mut header[100..108], i64::from(entry.mode));
    number(&mut header[108..116], entry.uid);
    number(&mut header[116..124], entry.gid);
    number(&mut header[124..136], entry.size.unwrap_or(contents as u64).cast_signed());
    number(&mut header[136..148], entry.mtime);
    header[156] = entry.kind;
    header[157..157 + entry.link.len()].copy_from_slice(entry.link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    number(&mut header[329..337], i64::from(entry.device.0));
    number(&mut header[337..345], i64::from(entry.device.1));
    header
}

/// A field: octal digits and a zero, or base 256 with its sign.
pub(super) fn number(field: &mut [u8], value: i64) {
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    if value >= 0 && digits.len() < field.len() {
        field[..digits.len()].copy_from_slice(digits.as_bytes());
    } else {
        let len = field.len();
        field.fill(if value < 0 { 0xff } else { 0 });
        field[len - 8..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
    }
}

fn summed(header: &[u8; BLOCK]) -> [u8; BLOCK] {
    let mut header = *header;
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
